// Package command runs the external programs that drivers need. Every program goes through a Runner,
// so that its stderr is in the error, cancellation ends it, and tests can record or script it.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

// Cmd is one run of a program. There is never a shell in between.
type Cmd struct {
	Name  string   // program, looked up in PATH
	Args  []string // arguments, passed as they are
	Stdin []byte
	Dir   string
	Env   []string // added to the parent's environment
}

func (c Cmd) String() string { return strings.Join(append([]string{c.Name}, c.Args...), " ") }

// Runner runs a program to its end and returns its standard output. The error of a failed program
// holds the program's name, exit status and the tail of its stderr.
type Runner interface {
	Run(ctx context.Context, cmd Cmd) ([]byte, error)
}

// Exec is the Runner that really runs programs.
type Exec struct{}

// Error is a program that ended with a status other than 0.
type Error struct {
	Cmd    Cmd
	Status int // exit status, -1 when killed
	Stderr string
}

func (e *Error) Error() string {
	msg := strings.TrimSpace(e.Stderr)
	if msg == "" {
		msg = fmt.Sprintf("exit status %d", e.Status)
	}
	return e.Cmd.Name + ": " + msg
}

const (
	stderrTail = 4096
	// outputDelay is how long, after a program has ended, its output may take to be read: on a busy host more than it should.
	outputDelay = 10 * time.Second
)

// Run implements Runner.
func (Exec) Run(ctx context.Context, c Cmd) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.Name, c.Args...)
	cmd.Dir = c.Dir
	if c.Env != nil {
		cmd.Env = append(cmd.Environ(), c.Env...)
	}
	if c.Stdin != nil {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	cmd.WaitDelay = outputDelay
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %w", c.Name, ctx.Err())
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fault.Errorf(fault.Unsupported, "program %s is not installed", c.Name)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return stdout.Bytes(), fmt.Errorf("%s: %w", c.Name, err)
	}
	text := stderr.String()
	if len(text) > stderrTail {
		text = "..." + text[len(text)-stderrTail:]
	}
	return stdout.Bytes(), &Error{Cmd: c, Status: exit.ExitCode(), Stderr: text}
}
