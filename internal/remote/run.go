package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/waiting"
)

const (
	stderrTail = 4096     // bytes of it that an error holds
	maxOutput  = 64 << 20 // bytes that a program may say
	endGrace   = time.Second
	killGrace  = 5 * time.Second
)

// Run implements command.Runner: the program runs on the other host, as the user that we log in as there. Its
// arguments go through that user's shell, which must be one of the POSIX kind, each quoted. Errors are those
// of command.Exec with the host's name before them; fault.Unavailable when the connection is lost, and nothing is
// known of the program then. When ctx ends the program gets SIGTERM, a second later SIGKILL: see Process.End.
func (h *Host) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	if _, err := line(cmd); err != nil {
		return nil, fmt.Errorf("host %s: %w", h, err)
	}
	c, session, err := h.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Name, err)
	}
	defer h.release(c, true)
	return c.run(ctx, session, cmd)
}

func (c *connection) run(ctx context.Context, session *ssh.Session, cmd command.Cmd) ([]byte, error) {
	session.Stdin = bytes.NewReader(cmd.Stdin)
	p, err := c.start(ctx, session, cmd)
	if err != nil {
		return nil, err
	}
	var out []byte
	read := make(chan struct{})
	c.host.wait.Go(func() {
		defer close(read)
		out, _ = io.ReadAll(io.LimitReader(p.Stdout, maxOutput))
		if n, _ := io.Copy(io.Discard, p.Stdout); n > 0 {
			p.much.Store(true)
		}
	})
	err = p.Wait(ctx)
	if ctx.Err() != nil {
		return nil, err
	}
	<-read // ends with the session
	if err == nil && p.much.Load() {
		err = fmt.Errorf("host %s: %s: says more than %d bytes", c.host, cmd.Name, maxOutput)
	}
	return out, err
}

// Process is a program that runs on another host.
type Process struct {
	Stdin  io.WriteCloser // of Host.Start
	Stdout io.Reader      // to be read to its end, or the program may hang

	c       *connection
	cmd     command.Cmd
	session *ssh.Session
	group   string // its process group on the other host
	stderr  *tail
	much    atomic.Bool   // it said more than is kept
	done    chan struct{} // closed when it has ended
	err     error         // of the library, when done
}

// Start starts a program whose input and output the caller holds; the session is given back when it ended, however
// that comes. ctx bounds the start alone.
func (h *Host) Start(ctx context.Context, cmd command.Cmd) (*Process, error) {
	if _, err := line(cmd); err != nil {
		return nil, fmt.Errorf("host %s: %w", h, err)
	}
	c, session, err := h.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Name, err)
	}
	return c.startPiped(ctx, session, cmd)
}

// startPiped starts cmd in a session that has been counted, and counts it off when it has ended.
func (c *connection) startPiped(ctx context.Context, session *ssh.Session, cmd command.Cmd) (*Process, error) {
	h := c.host
	stdin, err := session.StdinPipe()
	if err != nil {
		session.Close()
		h.release(c, true)
		return nil, fmt.Errorf("host %s: %s: %w", h, cmd.Name, err)
	}
	p, err := c.start(ctx, session, cmd)
	if err != nil {
		h.release(c, true)
		return nil, err
	}
	p.Stdin = stdin
	h.wait.Go(func() {
		<-p.done
		h.release(c, true)
	})
	return p, nil
}

// start starts cmd in a session; without an error the session ends with the process. What has not started in time finds
// its input closed if it does later.
func (c *connection) start(ctx context.Context, session *ssh.Session, cmd command.Cmd) (*Process, error) {
	ctx, done := waiting.On(ctx, "the start of %s on host %s", cmd.Name, c.host)
	defer done()
	text, err := line(cmd)
	if err != nil {
		session.Close()
		return nil, fmt.Errorf("host %s: %w", c.host, err)
	}
	stdout, err := session.StdoutPipe()
	if err != nil {
		session.Close()
		return nil, fmt.Errorf("host %s: %s: %w", c.host, cmd.Name, err)
	}
	p := &Process{c: c, cmd: cmd, session: session, Stdout: stdout, stderr: &tail{}, done: make(chan struct{})}
	session.Stderr = p.stderr
	begun := make(chan error, 1)
	c.host.wait.Go(func() {
		err := session.Start("echo " + marker + "$$; " + text)
		if err == nil {
			p.group, err = readMarker(stdout)
		}
		begun <- err
		if err == nil {
			p.err = session.Wait()
		}
		session.Close()
		close(p.done)
	})
	limit := time.NewTimer(c.host.config.AnswerLimit)
	defer limit.Stop()
	select {
	case err = <-begun:
	case <-limit.C:
		c.host.wait.Go(func() { session.Close() }) // which may have to wait too
		return nil, fault.Errorf(fault.Unavailable, "host %s: %s has not started within %v", c.host, cmd.Name, c.host.config.AnswerLimit)
	case <-ctx.Done():
		c.host.wait.Go(func() { session.Close() })
		return nil, c.host.ended(ctx)
	}
	if err == nil {
		return p, nil
	}
	if c.isLost() {
		return nil, fmt.Errorf("%s: %w", cmd.Name, c.err())
	}
	return nil, fault.Errorf(fault.Unsupported, "host %s lets user %s run no programs with a shell of the POSIX kind: %s: %w%s",
		c.host.at.dial(), c.host.at.user, cmd.Name, err, p.stderr.hint())
}

// marker begins the line with which the shell says that it runs, and as which process. sshd makes that the leader
// of a process group. What a shell's startup files say before it is dropped.
const (
	marker   = "hayloft-process:"
	maxNoise = 64 << 10
)

// readMarker reads up to the marker's line and not a byte more.
func readMarker(r io.Reader) (group string, err error) {
	var line []byte
	one := make([]byte, 1)
	for range maxNoise {
		if _, err := io.ReadFull(r, one); err != nil {
			return "", fmt.Errorf("it did not start: %v", err) // an end of what was read is not the connection's
		}
		if one[0] != '\n' {
			line = append(line, one[0])
			continue
		}
		if group, ok := strings.CutPrefix(string(line), marker); ok {
			if n, err := strconv.Atoi(group); err == nil && n > 1 {
				return group, nil
			}
		}
		line = line[:0]
	}
	return "", errors.New("something else runs there")
}

// Done is closed when the program has ended or nothing is known of it any more.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and says what became of the program, as Host.Run does; when ctx ends first, it ends it.
func (p *Process) Wait(ctx context.Context) error {
	_, done := waiting.On(ctx, "the end of %s on host %s", p.cmd.Name, p.c.host)
	defer done()
	select {
	case <-p.done:
		return p.outcome()
	case <-ctx.Done():
		p.End()
		return fmt.Errorf("%s: %w", p.cmd.Name, p.c.host.ended(ctx))
	}
}

// End ends the program and what it started with SIGTERM and, when that takes more than a second, SIGKILL, and waits some
// seconds more for it. A host with much else to do gets both also when that takes longer, while the connection lasts. sshd
// itself passes signals on for some users only, so kill does it.
func (p *Process) End() {
	for _, signal := range []struct {
		name  string
		grace time.Duration
	}{{"TERM", endGrace}, {"KILL", killGrace}} {
		if sent := p.signal(signal.name); p.ends(sent, 2*signal.grace) || p.ends(nil, signal.grace) {
			return
		}
	}
	p.c.host.wait.Go(func() { p.session.Close() })
}

// signal sends a signal to the program and what it started. The channel is closed when that is done, or has failed.
func (p *Process) signal(name string) (sent <-chan struct{}) {
	over := make(chan struct{})
	p.c.host.wait.Go(func() {
		defer close(over)
		ctx, cancel := context.WithTimeout(p.c.host.ctx, p.c.host.config.AnswerLimit)
		defer cancel()
		c, session, err := p.c.host.session(ctx)
		if err != nil {
			return // its end comes with the connection's
		}
		defer p.c.host.release(c, true)
		defer session.Close()
		select {
		case <-p.done: // the group's number may be another's by now
		default:
			if session.Start("kill -"+name+" -"+p.group) == nil {
				_ = session.Wait()
			}
		}
	})
	return over
}

// ends waits for the program's end, up to limit or until other is closed.
func (p *Process) ends(other <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-other:
	case <-timer.C:
	}
	return false
}

// outcome turns the library's error into ours.
func (p *Process) outcome() error {
	if p.err == nil {
		return nil
	}
	host := p.c.host
	var exit *ssh.ExitError
	if !errors.As(p.err, &exit) {
		if p.c.isLost() {
			return fmt.Errorf("%s: %w", p.cmd.Name, p.c.err())
		}
		return fault.Errorf(fault.Unavailable, "host %s: %s: nothing is known of its end: %w", host, p.cmd.Name, p.err)
	}
	e := &command.Error{Cmd: p.cmd, Status: exit.ExitStatus(), Stderr: p.stderr.String()}
	if exit.Signal() != "" {
		e.Status = -1
		if e.Stderr == "" {
			e.Stderr = "killed by SIG" + exit.Signal()
		}
	}
	if e.Status == statusNotFound {
		return fault.Errorf(fault.Unsupported, "host %s: program %s is not installed: %w", host, p.cmd.Name, e)
	}
	return fmt.Errorf("host %s: %w", host, e)
}

// statusNotFound is what a POSIX shell ends with when there is no such program.
const statusNotFound = 127

// tail keeps the end of what is written.
type tail struct {
	mu   sync.Mutex
	text []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text) - stderrTail; n > 0 {
		t.text, t.cut = append([]byte(nil), t.text[n:]...), true
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut {
		return "..." + string(t.text)
	}
	return string(t.text)
}

// hint is what was said, for the end of an error; "" for nothing.
func (t *tail) hint() string {
	if s := strings.TrimSpace(t.String()); s != "" {
		return ": " + s
	}
	return ""
}
