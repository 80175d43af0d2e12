package qemu

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
	"hayloft/lab/labtest"
)

// echoes reports whether the guest answers on its console.
func (l *lab) echoes(id int) bool {
	c, err := l.d.Console(l.Context(), id)
	if err != nil {
		l.Error(err)
		return false
	}
	defer c.Close()
	stop := time.AfterFunc(longest, func() { c.Close() })
	defer stop.Stop()
	if _, err := io.WriteString(c, "z"); err != nil {
		l.Error(err)
	}
	b := make([]byte, 1)
	_, err = io.ReadFull(c, b)
	return err == nil && b[0] == 'z'
}

// TestSaveToAFullDisk: the machine goes on, and no file is left.
func TestSaveToAFullDisk(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { labtest.Unmount(t, dir) })
	m := guest(t, 30)
	l.start(m)
	path := filepath.Join(dir, "saved")
	for range 2 {
		err := l.d.Save(t.Context(), 30, path)
		t.Log(err)
		if err == nil {
			t.Fatal("saved 8 MB on 64 KB")
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file is left: %v", err)
		}
		if !l.echoes(30) {
			t.Error("the guest does not go on")
		}
		if d := l.domain(30); d.Status != hypervisor.Running {
			t.Errorf("%+v", d)
		}
	}
	good := filepath.Join(t.TempDir(), "saved")
	if err := os.WriteFile(good, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.d.Save(t.Context(), 30, good); !fault.Is(err, fault.Exists) {
		t.Errorf("save over a file: %v", err)
	}
	if text, _ := os.ReadFile(good); string(text) != "precious" {
		t.Error("the file that was there is lost")
	}
	if err := l.d.Save(t.Context(), 30, good+"2"); err != nil {
		t.Errorf("save that has room, after some that had not: %v", err)
	}
}

// TestKillDuringFreeze: a power cut does not wait for a copy.
func TestKillDuringFreeze(t *testing.T) {
	l := newLab(t)
	l.start(guest(t, 31))
	err := l.d.Freeze(t.Context(), 31, func() error {
		if d := l.domain(31); d.Status != hypervisor.Paused {
			t.Errorf("%+v, want paused", d)
		}
		return l.d.Kill(t.Context(), 31)
	})
	if err != nil {
		t.Error(err)
	}
	if d := l.domain(31); d.Status != hypervisor.Off {
		t.Errorf("%+v, want off", d)
	}
}

// TestQEMUThatHangs: one that answers nothing can still be listed, adopted and killed.
func TestQEMUThatHangs(t *testing.T) {
	l := newLab(t)
	l.start(guest(t, 32))
	pid := l.domain(32).PID
	if err := labtest.Halt(pid); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.d.Shutdown(ctx, 32); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown of a hanging QEMU: %v", err)
	}
	if d := l.domain(32); d.Status != hypervisor.Running {
		t.Errorf("%+v", d)
	}
	if err := l.d.Kill(t.Context(), 32); err != nil {
		t.Fatal(err)
	}
	if d := l.domain(32); d.Status != hypervisor.Off || d.Reason != "killed on request" {
		t.Errorf("%+v", d)
	}
}

// TestQEMUThatHangsWhenAdopted: it is followed as soon as it answers, or a guest that goes off then would wait for ever.
func TestQEMUThatHangsWhenAdopted(t *testing.T) {
	l := newLab(t)
	m := guest(t, 34)
	l.start(m)
	pid := l.domain(34).PID
	if err := l.d.stopGuest(t.Context(), 34); err != nil { // as a driver leaves it that dies within a Freeze
		t.Fatal(err)
	}
	l.restart(func() {
		if err := labtest.Halt(pid); err != nil {
			t.Fatal(err)
		}
	})
	if !l.adopting(34) {
		t.Error("a QEMU that stands still has answered")
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.tend(34)
	l.await("the machine goes on", func() bool { return !l.adopting(34) })
	press(t, l.d, m, typePowerOff)
	l.await("off", func() bool { return l.domain(34).Status == hypervisor.Off })
}

// TestConnectionThatBreaks: what the guest does meanwhile is not missed.
func TestConnectionThatBreaks(t *testing.T) {
	l := newLab(t)
	m := guest(t, 35)
	l.start(m)
	l.d.find(35).connection().Close()
	press(t, l.d, m, typePowerOff)
	l.tend(35)
	l.await("off", func() bool { return l.domain(35).Status == hypervisor.Off })
}

// TestFreezeThatIsGivenUp: QEMU may hear the command when nobody waits for its answer any more; the guest goes on.
func TestFreezeThatIsGivenUp(t *testing.T) {
	l := newLab(t)
	m := guest(t, 36)
	l.start(m)
	pid := l.domain(36).PID
	if err := labtest.Halt(pid); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.d.Freeze(ctx, 36, func() error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("freeze of a hanging QEMU: %v", err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if !l.echoes(36) {
		t.Error("the guest does not go on")
	}
}

// tend does at once what the driver does by itself after some seconds.
func (l *lab) tend(id int) {
	if err := l.d.tendOne(l.d.find(id)); err != nil {
		l.Error(err)
	}
}

// connection is the one to the domain's QEMU.
func (dom *domain) connection() *qmp.Client {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	return dom.monitor
}

// TestStartCost measures what a Start takes; the guest's own boot is not in it.
func TestStartCost(t *testing.T) {
	l := newLab(t)
	m := guest(t, 33)
	if err := l.d.Start(t.Context(), m); err != nil { // the probe is not part of it
		t.Fatal(err)
	}
	defer l.d.Remove(context.Background(), 33)
	const rounds = 5
	var wall time.Duration
	var qemu float64
	before := cpuTime(t)
	for range rounds {
		if err := l.d.Kill(t.Context(), 33); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := l.d.Start(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		wall += time.Since(begun)
		u, err := l.d.Usage(t.Context(), 33)
		if err != nil {
			t.Fatal(err)
		}
		qemu += u.CPUSeconds
	}
	t.Logf("Start: %v wall, %v of the driver's CPU, %.0f ms of QEMU's CPU", wall/rounds, (cpuTime(t)-before)/rounds, qemu*1000/rounds)
}

func cpuTime(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
