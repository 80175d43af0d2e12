// Package lvm drives the logical volume manager through its own tools (lvm2), on whatever host a command.Runner reaches:
// groups, logical volumes thick and thin, snapshots, pools, tags, device nodes. Sizes and offsets are bytes.
//
// LVM serialises what changes one group by a lock of its own, so nothing here locks; when that lock cannot be had at once,
// or a device is busy for a moment, the command is tried again. A command that changes a group is not ended with its
// context, since LVM killed between two steps leaves devices suspended: contexts are looked at before, and bound what reads.
package lvm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// Tools are the tools of one host. The zero value runs them on this one. Safe for concurrent use.
type Tools struct {
	// Runner runs them; nil: on this host.
	Runner command.Runner
	// Config is handed to each of them as --config, for example `devices { filter = [...] }`; "" for none.
	Config string
	// Patience is for how long a command is tried again while locks of others are in its way; 0: a minute.
	Patience time.Duration
}

const (
	defaultPatience = time.Minute
	// changeTime bounds one command that changes something: long enough for a busy host, so that what comes later is killed.
	changeTime = 10 * time.Minute
)

// environment keeps messages in the language that errors are recognised in, and quiet about file descriptors of ours.
func environment() []string { return []string{"LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1"} }

func (t Tools) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	if t.Config != "" {
		args = append([]string{"--config", t.Config}, args...)
	}
	return t.program(ctx, name, args...)
}

// program runs it, again while it is only in somebody's way.
func (t Tools) program(ctx context.Context, name string, args ...string) ([]byte, error) {
	runner := t.Runner
	if runner == nil {
		runner = command.Exec{}
	}
	patience := t.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	began := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		out, err := runner.Run(ctx, command.Cmd{Name: name, Args: args, Env: environment()})
		if err == nil {
			return out, nil
		}
		var failed *command.Error
		if !errors.As(err, &failed) {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		trouble := recognise(name, failed.Stderr, failed.Status)
		if !trouble.passing || time.Since(began) > patience {
			return nil, trouble
		}
		select {
		case <-ctx.Done():
			return nil, fault.Errorf(fault.ClassOf(ctx.Err()), "%w: %w", trouble, ctx.Err())
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// change runs a command that must not be ended half-way.
func (t Tools) change(ctx context.Context, name string, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTime)
	defer cancel()
	_, err := t.run(ctx, name, args...)
	return err
}

// Check says whether the tools are there (fault.Unsupported).
func (t Tools) Check(ctx context.Context) error {
	_, err := t.run(ctx, "lvs", "--version")
	return err
}
