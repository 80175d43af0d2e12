package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// grace is how long a step that changes something may go on when its caller has left: a tool that is killed in the
// middle leaves its watch on the image, and nobody can remove that for half a minute.
const grace = 5 * time.Second

// step is the context of one run of a tool.
func (r *Repository) step(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return work, func() { stop(); cancel() }
}

func (r *Repository) run(ctx context.Context, limit time.Duration, program string, args ...string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.As(fault.Unavailable, err)
	}
	work, cancel := r.step(ctx, limit)
	defer cancel()
	line := []string{"--conf", r.conf, "--id", r.user}
	if keyring := r.keyringPath(); keyring != "" {
		if _, err := readKey(keyring, r.user); err != nil {
			return nil, err
		}
		line = append(line, "--keyring", keyring)
	}
	out, err := r.runner.Run(work, command.Cmd{Name: program, Args: append(line, args...), Env: []string{"TZ=UTC", "LC_ALL=C.UTF-8", "CEPH_ARGS="}, Dir: "/"})
	return out, r.explain(ctx, err)
}

// explain gives what a tool says its class.
func (r *Repository) explain(ctx context.Context, err error) error {
	var e *command.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && !errors.As(err, &e):
		return fault.Errorf(fault.Unavailable, "the cluster did not answer in time: %w", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fault.Errorf(fault.Unavailable, "the cluster has not answered: %w", err)
	case !errors.As(err, &e):
		return err
	}
	class := classOf(e)
	e.Stderr = sayings(e.Stderr)
	if class == fault.Permission {
		return fault.Errorf(class, "as client.%s: %w", r.user, e)
	}
	if strings.Contains(e.Stderr, "conf_read_file") { // the tool ceph does not say which
		return fault.Errorf(class, "CEPH_CONF %s cannot be read: %w", r.conf, e)
	}
	return fault.As(class, e)
}

// number is an errno as the tools put it.
var number = regexp.MustCompile(`(?:\(|\[errno )(\d+)[\])] `)

// sayings leaves the log lines of the library out when the tool itself says something.
func sayings(text string) string {
	var all, tools []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		all = append(all, line)
		if len(line) < 5 || line[4] != '-' || line[0] != '2' {
			tools = append(tools, line)
		}
	}
	if len(tools) == 0 {
		tools = all
	}
	return strings.Join(tools, "; ")
}

// classOf reads the number of the error from what a tool says: its status is not always it.
func classOf(e *command.Error) fault.Class {
	errno := syscall.Errno(0)
	if found := number.FindAllStringSubmatch(e.Stderr, -1); len(found) > 0 {
		n, _ := strconv.Atoi(found[len(found)-1][1])
		errno = syscall.Errno(n)
	} else if e.Cmd.Name == "rbd" && e.Status > 1 {
		errno = syscall.Errno(e.Status)
	}
	switch {
	case strings.Contains(e.Stderr, "opening pool"), strings.Contains(e.Stderr, "namespace '"), strings.Contains(e.Stderr, "unrecognized pool"):
		return fault.Unavailable // nothing is known about the object
	case strings.Contains(e.Stderr, "does not have any keys"), strings.Contains(e.Stderr, "handle_auth_bad_method"):
		return fault.Permission
	}
	switch errno {
	case syscall.ENOENT:
		return fault.NotFound
	case syscall.EEXIST:
		return fault.Exists
	case syscall.EBUSY:
		return fault.Busy
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return fault.Permission
	case syscall.ENOSPC, syscall.EDQUOT:
		return fault.OutOfSpace
	}
	return fault.Unavailable
}

// rbd runs the tool rbd in the pool.
func (r *Repository) rbd(ctx context.Context, args ...string) ([]byte, error) {
	return r.run(ctx, r.limit, "rbd", append(r.here(), args...)...)
}

func (r *Repository) here() []string {
	args := []string{"--pool", r.pool}
	if r.namespace != "" {
		args = append(args, "--namespace", r.namespace)
	}
	return args
}

// to are the options of a command that makes a new name.
func (r *Repository) to(image string) []string {
	args := []string{"--dest-pool", r.pool, "--dest", image}
	if r.namespace != "" {
		args = append(args, "--dest-namespace", r.namespace)
	}
	return args
}

// rados runs the tool rados in the pool.
func (r *Repository) rados(ctx context.Context, args ...string) ([]byte, error) {
	return r.run(ctx, r.limit, "rados", append(r.here(), args...)...)
}

// ask runs rbd and reads its JSON.
func (r *Repository) ask(ctx context.Context, result any, args ...string) error {
	out, err := r.rbd(ctx, append(args, "--format", "json")...)
	if err != nil {
		return err
	}
	return parse("rbd "+args[0], out, result)
}

func parse(what string, out []byte, result any) error {
	if err := json.Unmarshal(out, result); err != nil {
		return fault.Errorf(fault.Unavailable, "%s: %w", what, err)
	}
	return nil
}
