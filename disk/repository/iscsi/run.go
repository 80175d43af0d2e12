package iscsi

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
)

const (
	// grace is how long a command may go on when its caller has left, before it goes on alone.
	grace = 2 * time.Second
	// lvmLimit bounds a command of LVM, also one that goes on alone: shorter than a lease.
	lvmLimit = 2 * time.Minute
)

// attended runs programs at the server for one caller, who gets away when he wants. A program that changes something is not
// ended then, it goes on alone within its limit.
type attended struct {
	*Repository
	caller    context.Context
	selection string // which volumes a command is about, as LVM's --select; "": those it names
}

type outcome struct {
	out []byte
	err error
}

// Run implements command.Runner.
func (a attended) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	if a.selection != "" {
		cmd.Args = append([]string{"--select", a.selection}, cmd.Args...)
	}
	cmd.Dir = "/"
	ctx, cancel := context.WithTimeout(ctx, lvmLimit)
	done := make(chan outcome, 1)
	a.detached.Go(func() {
		defer cancel()
		out, err := a.server.Run(ctx, cmd)
		done <- outcome{out, a.late(ctx, cmd, err)}
	})
	select {
	case o := <-done:
		return o.out, o.err
	case <-a.caller.Done():
	}
	patience := time.NewTimer(grace)
	defer patience.Stop()
	select {
	case o := <-done:
		return o.out, o.err
	case <-patience.C:
		return nil, fault.Errorf(fault.Unavailable, "%s: the storage server did not answer in time: %w", cmd.Name, a.caller.Err())
	}
}

// late classifies the end of a context.
func (r *Repository) late(ctx context.Context, cmd command.Cmd, err error) error {
	var exit *command.Error
	if err != nil && ctx.Err() != nil && !errors.As(err, &exit) {
		return fault.Errorf(fault.Unavailable, "%s: the storage server has not answered: %w", cmd.Name, err)
	}
	return err
}

// partingLimit is for taking back what was begun when the caller has left; what takes longer goes on alone, or is Sweep's.
const partingLimit = 10 * time.Second

// parting is the context of that.
func parting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), partingLimit)
}

// tools are LVM's for a caller.
func (r *Repository) tools(ctx context.Context) lvm.Tools {
	return lvm.Tools{Runner: attended{Repository: r, caller: ctx}}
}

// run runs a program at the server that may be ended at any time.
func (r *Repository) run(ctx context.Context, limit time.Duration, name string, args ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fault.As(fault.Unavailable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := command.Cmd{Name: name, Args: args, Env: []string{"LC_ALL=C"}, Dir: "/"}
	out, err := r.server.Run(ctx, cmd)
	return string(out), r.late(ctx, cmd, err)
}

// now is the server's time in Unix seconds.
func (r *Repository) now(ctx context.Context) (int64, error) {
	out, err := r.run(ctx, r.limit, "date", "+%s")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return 0, fault.Errorf(fault.Unavailable, "date: the storage server says %q", out)
	}
	return n, nil
}

// boot tells runs of the server's kernel apart.
func (r *Repository) boot(ctx context.Context) (string, error) {
	return r.run(ctx, r.limit, "cat", "/proc/sys/kernel/random/boot_id")
}

// flush makes durable what the server has of a volume in memory.
func (r *Repository) flush(ctx context.Context, v volume) error {
	_, err := r.run(ctx, lvmLimit, "sync", r.device(v.Name))
	return err
}
