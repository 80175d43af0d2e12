package blockd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// daemonMain makes the test's program the daemon's process when it is started as one.
func daemonMain() bool {
	if len(os.Args) < 3 || os.Args[1] != "blockd" {
		return false
	}
	dir := os.Args[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	file, err := OpenLog(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c := RunConfig{Config: Config{StateDir: dir, Version: "test", Log: slog.New(slog.NewTextHandler(file, nil)), Patience: time.Minute}}
	if len(os.Args) > 3 {
		if c.Idle, err = time.ParseDuration(os.Args[3]); err != nil {
			os.Exit(2)
		}
	}
	if err := Run(ctx, c); err != nil {
		os.Exit(fault.ClassOf(err).ExitStatus())
	}
	return true
}

// keeperOf runs a keeper until the test or stop ends it. The process that it leaves is killed at the end.
func keeperOf(t testing.TB, c KeeperConfig) (k *Keeper, stop func()) {
	t.Helper()
	if c.Args == nil {
		c.Args = []string{"blockd", c.StateDir}
	}
	c.Log = logOf(t)
	k, err := NewKeeper(c)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			must(t, <-done)
			k.Client().Close()
		}
	}
	t.Cleanup(func() {
		stop()
		for _, pid := range processesOf(t, c.StateDir) { // also one that was started just now and does not answer yet
			end(t, pid, unix.SIGKILL)
		}
		if exists(filepath.Join(c.StateDir, fuseState)) { // or nobody would ever answer for its files
			must(t, Abandon(context.Background(), c.StateDir, ""))
		}
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(c.StateDir, LogFile))
			t.Logf("%s", text[max(0, len(text)-4000):])
		}
	})
	return k, stop
}

// processesOf are the daemon's processes with that state directory, by their command lines.
func processesOf(t testing.TB, stateDir string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // gone meanwhile, or a zombie
		if args := strings.Split(string(line), "\x00"); len(args) > 2 && args[1] == "blockd" && args[2] == stateDir {
			pids = append(pids, pid)
		}
	}
	return pids
}

func askOnce(stateDir string) (Status, error) {
	c := NewClient(stateDir)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.Status(ctx)
}

// end ends a process and waits until it is gone; one of our own children stays in the process table.
func end(t testing.TB, pid int, signal unix.Signal) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	must(t, unix.PidfdSendSignal(fd, signal, nil, 0))
	if !endedWithin(fd, patience) {
		t.Errorf("process %d does not end", pid)
	}
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
}

// endedWithin waits for the process of a pidfd.
func endedWithin(fd int, limit time.Duration) bool {
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(end).Milliseconds(), 0)))
		if err != unix.EINTR {
			return n == 1
		}
	}
}

func statusOf(t testing.TB, s Service) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	status, err := s.Status(ctx)
	must(t, err)
	return status
}

// TestKeeperKeeps: the process is there, detached, and again within a moment after it was killed; it survives its
// keeper, and the next one adopts it.
func TestKeeperKeeps(t *testing.T) {
	b := newBench(t)
	k, stop := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	first := statusOf(t, k.Client())
	if sid, err := unix.Getsid(first.PID); err != nil || sid != first.PID {
		t.Errorf("session %d of process %d, %v", sid, first.PID, err)
	}
	for range 3 {
		before := statusOf(t, k.Client()).PID
		end(t, before, unix.SIGKILL)
		began := time.Now()
		if again := statusOf(t, k.Client()); again.PID == before {
			t.Error("answered by the dead")
		}
		t.Logf("answers again after %v", time.Since(began))
	}
	img := b.image(3, "tiny", content(3*chunk, 1))
	must(t, k.Client().Export(t.Context(), b.baseExport("1.0", img)))
	before := statusOf(t, k.Client())
	stop()
	k, _ = keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	if after := statusOf(t, k.Client()); after.PID != before.PID || len(after.Exports) != 1 {
		t.Errorf("%+v instead of %+v", after, before)
	}
}

// TestKeeperReplacesAnotherBuild: exports go on with the new one.
func TestKeeperReplacesAnotherBuild(t *testing.T) {
	b := newBench(t)
	self, err := os.Executable()
	must(t, err)
	old := filepath.Join(b.dir, "old")
	text, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(old, text, 0o755))
	k, stop := keeperOf(t, KeeperConfig{Executable: old, StateDir: b.config.StateDir})
	img := b.image(3, "tiny", content(3*chunk, 1))
	must(t, k.Client().Export(t.Context(), b.baseExport("1.0", img)))
	before := statusOf(t, k.Client())
	c := dial(t, b.export("1.0").Path)
	stop()
	k, _ = keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	eventually(t, "another process", func() bool { return statusOf(t, k.Client()).PID != before.PID })
	if n := len(readAll(t, c)); n != 3*chunk { // the client connects again
		t.Errorf("%d bytes", n)
	}
	if running, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", statusOf(t, k.Client()).PID)); err != nil || running != self {
		t.Error(running, err)
	}
}

// TestKeeperOfWhatCannotStart: who waits is told why.
func TestKeeperOfWhatCannotStart(t *testing.T) {
	b := newBench(t)
	k, _ := keeperOf(t, KeeperConfig{Executable: "/bin/false", StateDir: b.config.StateDir})
	eventually(t, "an end", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.trouble != nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // so that it is asked once at least
	defer cancel()
	_, err := k.Client().Status(ctx)
	class(t, "ask", err, fault.Unavailable)
	says(t, err, "exit status 1", LogFile)
	_, err = NewKeeper(KeeperConfig{StateDir: "/" + strings.Repeat("x", 100)})
	class(t, "long state directory", err, fault.Invalid)
}

// TestProcessEndsWhenIdle: nothing is left on a host that uses it no more.
func TestProcessEndsWhenIdle(t *testing.T) {
	b := newBench(t)
	args := []string{"blockd", b.config.StateDir, "100ms"}
	k, stop := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir, Args: args})
	img := b.image(3, "tiny", content(3*chunk, 1))
	must(t, k.Client().Export(t.Context(), b.baseExport("1.0", img)))
	pid := statusOf(t, k.Client()).PID
	stop()
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer unix.Close(fd)
	if endedWithin(fd, 300*time.Millisecond) {
		t.Fatal("ended with an export")
	}
	c := NewClient(b.config.StateDir)
	must(t, c.Unexport(t.Context(), "1.0"))
	c.Close()
	if !endedWithin(fd, patience) {
		t.Fatal("goes on for nobody")
	}
	if exists(socketOf(b.config.StateDir)) {
		t.Error("socket left")
	}
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
}

// TestSignalEndsGracefully: SIGTERM leaves what is exported to the next one, and there is one at a time.
func TestSignalEndsGracefully(t *testing.T) {
	b := newBench(t)
	k, stop := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	img := b.image(3, "tiny", content(3*chunk, 1))
	must(t, k.Client().Export(t.Context(), b.baseExport("1.0", img)))
	pid := statusOf(t, k.Client()).PID
	stop()
	end(t, pid, unix.SIGTERM)
	if exists(b.export("1.0").Path) || exists(socketOf(b.config.StateDir)) {
		t.Error("sockets left")
	}
	_, err := askOnce(b.config.StateDir)
	class(t, "ask nobody", err, fault.Unavailable)
	k, _ = keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	if s := statusOf(t, k.Client()); len(s.Exports) != 1 {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = lockDir(ctx, b.config.StateDir, time.Minute)
	class(t, "a second one", err, fault.Busy)
}

func TestLogStaysSmall(t *testing.T) {
	if os.Getenv("HAYLOFT_TEST_LOG") == "" {
		// It takes standard output and error: in a process of its own.
		cmd := exec.Command(os.Args[0], "-test.run", "^TestLogStaysSmall$")
		cmd.Env = append(os.Environ(), "HAYLOFT_TEST_LOG="+t.TempDir())
		if err := cmd.Run(); err != nil {
			t.Error(err)
		}
		return
	}
	dir := os.Getenv("HAYLOFT_TEST_LOG")
	l, err := OpenLog(dir)
	must(t, err)
	l.most = 1000
	for range 100 {
		if _, err := l.Write(make([]byte, 90)); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(os.Stderr, "a crash")
	text, err := os.ReadFile(filepath.Join(dir, LogFile))
	if err != nil || len(text) > 1010 || !strings.Contains(string(text), "a crash") {
		t.Error(len(text), err)
	}
	if fi, err := os.Stat(filepath.Join(dir, LogFile+".1")); err != nil || fi.Size() > 1000 {
		t.Error(fi, err)
	}
}
