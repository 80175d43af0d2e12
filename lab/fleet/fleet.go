package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/undo"
	"hayloft/server/api/client"
)

// Config says what is to run. Only Binary has no default.
type Config struct {
	Binary string   // the hayloft program
	Kind   string   // a short word for the run's name; "fleet" when empty
	Dir    string   // where the run's directory is made; the system's for temporary files when empty
	Args   []string // further flags of `hayloft up`
}

// Fleet is a running Hayloft with a site of its own. Its owner calls Stop.
type Fleet struct {
	*Site
	Client *client.Client
	Began  Usage // when it was ready

	up      *exec.Cmd
	ended   chan struct{} // closed when `hayloft up` has
	outcome error         // of `hayloft up`, after ended
}

const (
	startLimit = 4 * time.Minute
	host       = "lab"
)

// Start starts `hayloft up` in a site of its own and returns when its agent has joined. After an error nothing
// is left.
func Start(ctx context.Context, c Config) (*Fleet, error) {
	if c.Kind == "" {
		c.Kind = "fleet"
	}
	binary, err := filepath.Abs(c.Binary)
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath(binary); err != nil {
		return nil, fault.Errorf(fault.NotFound, "program %s: %w (make build makes it)", binary, err)
	}
	site, err := NewSite(c.Kind, c.Dir)
	if err != nil {
		return nil, err
	}
	f := &Fleet{Site: site, ended: make(chan struct{})}
	var made undo.Stack
	made.Push(func() error { return site.Close(context.WithoutCancel(ctx)) })
	if err := f.start(ctx, binary, c.Args, &made); err != nil {
		return nil, errors.Join(err, made.Run())
	}
	return f, nil
}

// flags are those that `up` and `down` share.
func (f *Fleet) flags() []string {
	return []string{"--netns", f.Name, "--instance", f.Name, "--state-dir", f.stateDir(), "--socket", f.Socket()}
}

func (f *Fleet) stateDir() string { return filepath.Join(f.Dir, "state") }
func (f *Fleet) logFile() string  { return filepath.Join(f.Dir, "up.log") }

// Socket is where the API listens.
func (f *Fleet) Socket() string { return filepath.Join(f.Dir, "api.sock") }

func (f *Fleet) start(ctx context.Context, binary string, args []string, made *undo.Stack) error {
	if err := f.Prober.writeKey(f.KeyFile()); err != nil {
		return err
	}
	f.record.Binary = binary
	f.record.Down = append([]string{"down", "--purge"}, f.flags()...)
	if err := f.record.write(); err != nil {
		return err
	}
	log, err := os.OpenFile(f.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	f.up = exec.Command(binary, append(append([]string{"up", "--host", host}, f.flags()...), args...)...)
	f.up.Stdout, f.up.Stderr = log, log
	f.up.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for whoever owns the run
	if err := f.up.Start(); err != nil {
		return err
	}
	go func() {
		f.outcome = f.up.Wait()
		close(f.ended)
	}()
	made.Push(f.endUp)
	if f.Client, err = client.New(client.Config{Endpoint: f.Endpoint()}); err != nil {
		return err
	}
	if err := f.awaitHost(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, f.Log(20))
	}
	f.Began, err = f.Usage()
	return err
}

// Endpoint is for HAYLOFT_ENDPOINT.
func (f *Fleet) Endpoint() string { return "unix://" + f.Socket() }

func (f *Fleet) endUp() error {
	_ = f.up.Process.Signal(syscall.SIGTERM)
	select {
	case <-f.ended:
	case <-time.After(2 * time.Minute):
		_ = f.up.Process.Kill()
		<-f.ended
	}
	return nil
}

// awaitHost waits for the agent to have joined with something to run machines on.
func (f *Fleet) awaitHost(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		hosts, err := f.Client.Hosts(ctx)
		if err == nil && len(hosts) == 1 && hosts[0].Connected && len(hosts[0].Hypervisor) > 0 {
			return nil
		}
		if err != nil && !fault.Is(err, fault.Unavailable) {
			return err
		}
		select {
		case <-tick.C:
		case <-f.ended:
			return fmt.Errorf("hayloft up ended: %w", f.outcome)
		case <-ctx.Done():
			return fmt.Errorf("hayloft up: its agent did not join: %w", ctx.Err())
		}
	}
}

// Log is the last lines of what the processes have logged.
func (f *Fleet) Log(lines int) string {
	text, _ := os.ReadFile(f.logFile())
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// KeyFile is the private key that the machines let in, for ssh(1).
func (f *Fleet) KeyFile() string { return filepath.Join(f.Dir, "id_ed25519") }

// Keep leaves the run where it is when this process ends: it is taken down by the record (Runs).
func (f *Fleet) Keep() error {
	f.Prober.Close()
	f.Client.Close()
	f.record.Keep = true
	return f.record.write()
}

// Stop takes everything down: in order by `hayloft down --purge`, and by force what then is still there. The
// error says also what did not go in order, with everything gone nevertheless.
func (f *Fleet) Stop(ctx context.Context) error {
	f.Client.Close()
	err := f.record.down(ctx)
	if err != nil {
		err = fmt.Errorf("hayloft down: %w\n%s", err, f.Log(10))
	}
	return errors.Join(err, f.endUp(), f.Close(ctx))
}
