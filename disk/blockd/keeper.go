package blockd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/netspace"
)

// KeeperConfig of a Keeper.
type KeeperConfig struct {
	Executable string   // absolute; "": this program
	Args       []string // of it; nil: blockd --state-dir StateDir --log-file
	StateDir   string   // absolute
	Log        *slog.Logger
}

// Keeper keeps a daemon's process running, which outlives it. One that runs already is adopted when it is of the
// same build, else it is asked to end and another one started: hypervisors connect again.
type Keeper struct {
	config KeeperConfig
	client *Client
	probe  *Client
	child  *os.Process // started by Run and not known to have ended; nil: none
	former []int       // processes started before that, in the same state

	mu      sync.Mutex
	up      bool
	trouble error         // why it is not up
	changed chan struct{} // closed with each change of up
}

// NewKeeper makes a Keeper; nothing is started before Run.
func NewKeeper(c KeeperConfig) (*Keeper, error) {
	if !filepath.IsAbs(c.StateDir) {
		return nil, fault.Errorf(fault.Invalid, "blockd: state directory %q is not absolute", c.StateDir)
	}
	if socket := socketOf(c.StateDir); len(socket) > maxSocketPath {
		return nil, fault.Errorf(fault.Invalid, "blockd: socket %s: the path has %d bytes, a unix socket's has %d at most: choose a shorter state directory", socket, len(socket), maxSocketPath)
	}
	if c.Executable == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		c.Executable = self
	}
	if c.Args == nil {
		c.Args = []string{"blockd", "--state-dir", c.StateDir, "--log-file"}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	k := &Keeper{config: c, client: NewClient(c.StateDir), probe: NewClient(c.StateDir), changed: make(chan struct{})}
	k.client.patient = true
	k.client.wait = k.wait
	return k, nil
}

// Client asks the process; its calls wait until that answers, also while it is started again, for as long as their
// contexts last.
func (k *Keeper) Client() *Client { return k.client }

func (k *Keeper) set(up bool, trouble error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.up, k.trouble = up, trouble
	close(k.changed)
	k.changed = make(chan struct{})
}

// wait is what a client does whose call found nobody: a moment at least, and until Run says that it is up.
func (k *Keeper) wait(ctx context.Context) error {
	pause := time.NewTimer(askAgain)
	defer pause.Stop()
	for waited := false; ; {
		k.mu.Lock()
		up, trouble, changed := k.up, k.trouble, k.changed
		k.mu.Unlock()
		if up && waited {
			return nil
		}
		select {
		case <-pause.C:
			waited = true
		case <-changed:
		case <-ctx.Done():
			if trouble != nil {
				return fault.Errorf(fault.Unavailable, "blockd does not run: %w", trouble)
			}
			return ctx.Err()
		}
	}
}

const (
	askAgain   = 5 * time.Millisecond
	startPoll  = 2 * time.Millisecond
	startLimit = 10 * time.Second // for a process to answer
	endPatient = 10 * time.Second // for a process to end that was asked to; then it is killed
	reapLimit  = 2 * time.Second  // for one to be gone that answers no more: it may be waiting for the next
	healthy    = time.Second      // one that lived so long is started again at once
	pauseFirst = 20 * time.Millisecond
	pauseMost  = 2 * time.Second
)

// Run keeps the process running until ctx ends; it goes on after that for as long as it has exports.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.client.Close()
	pause := time.Duration(0)
	for {
		began := time.Now()
		err := k.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.set(false, err)
		if err != nil {
			k.config.Log.Warn("data path", "error", err)
		}
		if time.Since(began) > healthy {
			pause = 0
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(max(2*pause, pauseFirst), pauseMost)
	}
}

// round finds or starts the process and returns when it has ended.
func (k *Keeper) round(ctx context.Context) error {
	h, err := k.probe.hold(ctx)
	switch {
	case err == nil && k.sameBuild(h.PID):
		k.config.Log.Info("data path adopted", "pid", h.PID, "version", h.Version)
	case err == nil:
		k.config.Log.Info("data path is of another build, replaced", "pid", h.PID, "version", h.Version)
		return k.replace(ctx, h)
	case fault.Is(err, fault.Unsupported):
		return k.replaceStranger(ctx, err)
	case !unreachable(err):
		return err
	default:
		if h, err = k.start(ctx); err != nil {
			return err
		}
		k.config.Log.Info("data path started", "pid", h.PID, "version", h.Version)
	}
	k.set(true, nil)
	h.wait()
	k.reapSoon(ctx)
	if ctx.Err() == nil {
		k.config.Log.Warn("data path has ended, started again", "pid", h.PID)
	}
	return nil
}

// sameBuild reports whether a process runs the program that this keeper would start.
func (k *Keeper) sameBuild(pid int) bool {
	var theirs, ours unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &theirs) != nil || unix.Stat(k.config.Executable, &ours) != nil {
		return false
	}
	return theirs.Dev == ours.Dev && theirs.Ino == ours.Ino && theirs.Size == ours.Size && theirs.Mtim == ours.Mtim
}

// replace has a process end, whatever it takes; what it promised is on the disk.
func (k *Keeper) replace(ctx context.Context, h *holding) error {
	fd, err := unix.PidfdOpen(h.PID, 0)
	if err != nil {
		h.body.Close()
		return nil // it ended meanwhile
	}
	defer unix.Close(fd)
	limit, cancel := context.WithTimeout(ctx, endPatient)
	defer cancel()
	stop := context.AfterFunc(limit, func() { h.body.Close() })
	defer stop()
	if err := k.probe.end(limit); err != nil {
		_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	}
	h.wait()
	if limit.Err() == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// replaceStranger has one end that does not speak our protocol: ending they all understand.
func (k *Keeper) replaceStranger(ctx context.Context, why error) error {
	k.config.Log.Info("data path speaks another protocol, replaced", "error", why)
	limit, cancel := context.WithTimeout(ctx, endPatient)
	defer cancel()
	if err := k.probe.end(limit); err != nil && !unreachable(err) {
		return errors.Join(why, err)
	}
	return nil
}

// start starts the process, detached, and waits until one answers: this one, or that of another keeper which was faster.
func (k *Keeper) start(ctx context.Context) (*holding, error) {
	if err := os.MkdirAll(k.config.StateDir, 0o700); err != nil {
		return nil, err
	}
	log, err := appendTo(filepath.Join(k.config.StateDir, LogFile))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(k.config.Executable, k.config.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, netspace.ParentVariable+"=") })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("blockd: %w", err)
	}
	k.letGo()
	k.child = cmd.Process
	limit, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		h, err := k.probe.hold(ctx)
		if err == nil {
			return h, nil
		}
		if how := k.reap(); how != "" {
			return nil, fmt.Errorf("blockd ended at once (%s), its log is %s", how, log.Name())
		}
		select {
		case <-tick.C:
		case <-limit.Done():
			return nil, fmt.Errorf("blockd (process %d) does not answer: %w", cmd.Process.Pid, err)
		}
	}
}

// reap takes a child that has ended out of the process table; how it ended, "" when it has not. It is not waited for
// in any other way: it may outlive this process.
func (k *Keeper) reap() string {
	if k.child == nil {
		return ""
	}
	var status unix.WaitStatus
	pid, err := unix.Wait4(k.child.Pid, &status, unix.WNOHANG, nil)
	if err == nil && pid == 0 || errors.Is(err, unix.EINTR) {
		return ""
	}
	_ = k.child.Release()
	k.child = nil
	switch {
	case err != nil:
		return err.Error()
	case status.Signaled():
		return status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// reapSoon waits for a child whose connections are closed, and lets go of one that takes long: files of its own that
// it had in use when it was killed are answered for by the next only.
func (k *Keeper) reapSoon(ctx context.Context) {
	limit, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for k.child != nil && k.reap() == "" {
		select {
		case <-tick.C:
		case <-limit.Done():
			k.letGo()
			return
		}
	}
}

// letGo notes the child as a former one, and takes former ones that have ended out of the process table.
func (k *Keeper) letGo() {
	if k.child != nil {
		k.former = append(k.former, k.child.Pid)
		_ = k.child.Release()
		k.child = nil
	}
	k.former = slices.DeleteFunc(k.former, func(pid int) bool {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		return got != 0 && !errors.Is(err, unix.EINTR)
	})
}
