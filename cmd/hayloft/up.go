package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hayloft/agent"
	"hayloft/cloud/fault"
	"hayloft/internal/durable"
	"hayloft/internal/lockfile"
	"hayloft/internal/netspace"
	"hayloft/server/api/client"
)

// upFlags are the flags of `hayloft up`.
type upFlags struct {
	stateDir string
	socket   string
	listen   string
	policy   string
	agent    agentFlags
}

func newUpCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything on this machine: server, store and agent",
		Long: "Run everything on this machine: a server with its store, and an agent, as two processes that speak mutual TLS over a socket.\n" +
			"A process that ends is started again. Ctrl-C ends both; machines go on, and are there when it comes up again.\n" +
			"`hayloft down` takes machines and everything else down.",
		Example: "  sudo hayloft up\n" +
			"  sudo hayloft up --netns lab --state-dir /srv/lab --socket /run/lab.sock",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runUp(cmd.Context(), f) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.listen, "listen", "", "host:port for agents of further hosts")
	cmd.Flags().StringVar(&f.policy, "sched-policy", "striping", "where machines go: packing or striping")
	f.agent.register(cmd)
	return cmd
}

func (f *upFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "/var/lib/hayloft", "directory of all state")
	cmd.Flags().StringVar(&f.socket, "socket", "/run/hayloft/api.sock", "unix socket of the API, for root of this machine")
}

func (f *upFlags) fleetSocket() string { return filepath.Join(f.stateDir, "fleet.sock") }
func (f *upFlags) pidFile() string     { return filepath.Join(f.stateDir, "up.pid") }
func (f *upFlags) tokenFile() string   { return filepath.Join(f.stateDir, "agent-token") }
func (f *upFlags) agentDir() string    { return filepath.Join(f.stateDir, "agent") }

func runUp(ctx context.Context, f upFlags) error {
	if os.Geteuid() != 0 {
		return fault.Errorf(fault.Permission, "hayloft up makes bridges and starts machines as users of their own: run it as root")
	}
	log, err := newLogger("up", f.agent.logLevel)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.stateDir, 0o711); err != nil {
		return err
	}
	release, err := f.lock()
	if err != nil {
		return err
	}
	defer release()
	ctx, stop := untilSignal(ctx)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the processes

	self, err := os.Executable()
	if err != nil {
		return err
	}
	server := child{name: "server", path: self, log: log, args: []string{"server", "--state-dir", filepath.Join(f.stateDir, "server"),
		"--socket", f.socket, "--fleet-socket", f.fleetSocket(), "--listen", f.listen, "--sched-policy", f.policy, "--log-level", f.agent.logLevel}}
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	group.Go(func() { cancel(server.keep(ctx)) })
	if err := f.enroll(ctx); err != nil {
		cancel(err)
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		return err
	}
	agentChild := child{name: "agent", path: self, log: log, args: f.agentArgs()}
	group.Go(func() { cancel(agentChild.keep(ctx)) })
	<-ctx.Done()
	group.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (f *upFlags) agentArgs() []string {
	a := &f.agent
	args := []string{"agent", "--state-dir", f.agentDir(), "--server", "unix:" + f.fleetSocket(), "--token-file", f.tokenFile(),
		"--host", a.name, "--instance", a.instance, "--log-level", a.logLevel}
	texts, numbers := a.storage.text(), a.storage.numbers()
	maps.Copy(texts, map[string]string{"--netns": a.netns, "--accel": a.accel})
	for flag, value := range texts {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	maps.Copy(numbers, map[string]int64{"--memory": a.memoryMB, "--uid-base": int64(a.uidBase), "--gid": int64(a.gid),
		"--prepares": int64(a.prepares), "--starts": int64(a.starts)})
	for flag, value := range numbers {
		if value != 0 {
			args = append(args, flag, strconv.FormatInt(value, 10))
		}
	}
	for flag, value := range map[string]float64{"--cpu": a.cpu, "--boot-cores": a.bootCores} {
		if value != 0 {
			args = append(args, flag+"="+strconv.FormatFloat(value, 'f', -1, 64))
		}
	}
	for _, h := range a.hypervisors {
		args = append(args, "--hypervisors", h)
	}
	return args
}

// enroll waits for the server, makes this host's record, and leaves a token for the agent unless it has
// its certificate already. What answers may be the server of a `hayloft up` that was killed, about to end.
func (f *upFlags) enroll(ctx context.Context) error {
	c, err := client.New(client.Config{Endpoint: "unix://" + f.socket})
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		if err := answers(ctx, c); err != nil {
			return err
		}
		if agent.Enrolled(f.agentDir()) {
			return nil
		}
		if err := f.leaveToken(ctx, c); !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return err
		}
	}
}

func (f *upFlags) leaveToken(ctx context.Context, c *client.Client) error {
	made, err := c.CreateHost(ctx, f.agent.name, "")
	if fault.Is(err, fault.Exists) {
		made, err = c.HostToken(ctx, f.agent.name)
	}
	if err != nil {
		return err
	}
	return writeSecret(f.tokenFile(), made.Token)
}

// answers returns when the server does.
func answers(ctx context.Context, c *client.Client) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := c.Version(ctx)
		if err == nil || !fault.Is(err, fault.Unavailable) {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writeSecret writes a file that only its owner can read, at once.
func writeSecret(path, text string) error {
	return durable.WriteFile(path, []byte(text+"\n"), 0o600)
}

// lock makes this the only `hayloft up` of its state directory, and leaves its process id for `down`.
func (f *upFlags) lock() (release func(), err error) {
	var file *os.File
	for locked := false; !locked; {
		if file, err = os.OpenFile(f.pidFile(), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return nil, err
		}
		if err := lockfile.Take(context.Background(), file, 0); err != nil {
			file.Close()
			if fault.Is(err, fault.Busy) {
				return nil, fault.Errorf(fault.Busy, "state directory %s: another hayloft up uses it", f.stateDir)
			}
			return nil, err
		}
		if locked = stillThere(file); !locked {
			file.Close()
		}
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(file, os.Getpid())
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return func() {
		_ = os.Remove(f.pidFile())
		file.Close()
	}, nil
}

// stillThere says whether an open file is the one of its name: who had it before may have removed it before we locked it.
func stillThere(file *os.File) bool {
	here, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(file.Name())
	return err == nil && os.SameFile(here, there)
}

// child is a process of this program that is kept running.
type child struct {
	name string
	path string
	args []string
	log  *slog.Logger
}

const (
	healthy    = 10 * time.Second // a child that lived so long may be started again at once
	graceful   = time.Minute      // to end after SIGTERM: an agent takes back what it had begun, and ends its data path
	impatience = 5                // ends in a row, each before it was healthy, after which it is given up
	pauseStep  = 50 * time.Millisecond
	pauseMost  = 2 * time.Second
)

// keep runs the process until ctx ends, again when it ends by itself, each time after a longer pause unless it
// was healthy. It gives up on one that cannot stay; one that is killed or crashes may start again for ever.
func (c *child) keep(ctx context.Context) error {
	quick := 0
	for ends := 0; ; ends++ {
		select {
		case <-time.After(min(time.Duration(ends)*pauseStep, pauseMost)):
		case <-ctx.Done():
			return nil
		}
		began := time.Now()
		err := c.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > healthy {
			quick, ends = 0, 0
		}
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.ExitCode() == -1
		if !killed { // it ended with a word of its own
			quick++
		}
		if quick >= impatience || errors.As(err, &exit) && exit.ExitCode() == fault.Invalid.ExitStatus() {
			return fmt.Errorf("the %s does not stay up: %w", c.name, err)
		}
		c.log.Warn("process ended, started again", "child", c.name, "error", err)
	}
}

func (c *child) run(ctx context.Context) error {
	cmd := exec.Command(c.path, c.args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A panic ends it by a signal then, and not with the status of a wrong configuration.
	cmd.Env = append(os.Environ(), netspace.ParentVariable+"="+strconv.Itoa(os.Getpid()), "GOTRACEBACK=crash")
	// Out of the terminal's process group: Ctrl-C reaches it through us, in order. It ends with us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread() // the death signal is tied to the thread that started it
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(graceful)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		_ = cmd.Process.Kill()
		return <-ended
	}
}
