package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

func events(r *rig) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	feed := r.driver.Events(ctx)
	m := r.machine()
	after := func(what string, status hypervisor.Status, change func()) {
		r.Helper()
		change()
		limit := time.NewTimer(r.Patience)
		defer limit.Stop()
		for seen := false; !seen; {
			select {
			case id := <-feed:
				seen = id == m.ID && r.list()[m.ID].Status == status
			case <-limit.C:
				r.Fatalf("after %s: no event that finds the domain %q; it is %+v", what, status, r.list()[m.ID])
			}
		}
		drain(feed)
	}
	after("start", hypervisor.Running, func() { r.must(r.driver.Start(r.ctx, m)) })
	r.awaitBoots(m, 1)
	after("shutdown", hypervisor.Off, func() { r.must(r.driver.Shutdown(r.ctx, m.ID)) })
	after("second start", hypervisor.Running, func() { r.must(r.driver.Start(r.ctx, m)) })
	if r.KillProcess != nil {
		r.awaitBoots(m, 1)
		after("death", hypervisor.Crashed, func() { r.KillProcess(r, r.stateDir, r.driver, m) })
		after("third start", hypervisor.Running, func() { r.must(r.driver.Start(r.ctx, m)) })
	}
	r.must(r.driver.Kill(r.ctx, m.ID))
	r.awaitEvent(feed, m.ID, "kill")
	drain(feed)
	r.must(r.driver.Remove(r.ctx, m.ID))
	r.awaitEvent(feed, m.ID, "remove")
	cancel()
	limit := time.NewTimer(r.Patience)
	defer limit.Stop()
	for {
		select {
		case _, open := <-feed:
			if !open {
				return
			}
		case <-limit.C:
			r.Fatal("the channel stays open after its context ended")
		}
	}
}

func (r *rig) awaitEvent(feed <-chan int, id int, what string) {
	r.Helper()
	limit := time.NewTimer(r.Patience)
	defer limit.Stop()
	for {
		select {
		case got := <-feed:
			if got == id {
				return
			}
		case <-limit.C:
			r.Fatalf("no event after %s", what)
		}
	}
}

// drain takes the events that are there now.
func drain(feed <-chan int) {
	for {
		select {
		case <-feed:
		case <-time.After(20 * time.Millisecond):
			return
		}
	}
}

func saveAndRestore(r *rig) {
	m := r.started()
	path := r.TempDir() + "/saved"
	r.must(r.driver.Save(r.ctx, m.ID, path))
	info, err := os.Stat(path)
	r.must(err)
	if info.Size() == 0 || info.Mode().Perm() != 0o600 {
		r.Errorf("saved file has %d bytes, mode %v", info.Size(), info.Mode())
	}
	if d := r.list()[m.ID]; d.Status != hypervisor.Off {
		r.Errorf("after Save the domain is %+v, want off", d)
	}
	boots := 0
	if r.Console && r.BootMark != "" {
		boots = r.boots(m)
	}
	m.Restore = path
	r.must(r.driver.Start(r.ctx, m))
	r.running(m)
	if r.Console && r.BootMark != "" && r.boots(m) > boots {
		r.Error("the restored machine booted instead of going on")
	}
	r.must(r.driver.Kill(r.ctx, m.ID))
	r.must(os.WriteFile(path, []byte("no saved machine"), 0o600))
	if err := r.driver.Start(r.ctx, m); err == nil {
		r.Error("started from a file that holds no machine")
	}
	if d := r.list()[m.ID]; d.Status == hypervisor.Running {
		r.Errorf("after a failed restore the domain is %+v", d)
	}
}

func failedSave(r *rig) {
	m := r.started()
	path := r.TempDir() + "/missing/saved"
	if err := r.driver.Save(r.ctx, m.ID, path); err == nil {
		r.Error("saved into a directory that does not exist")
	}
	r.running(m)
	if r.Save {
		return
	}
	path = r.TempDir() + "/saved"
	r.class(r.driver.Save(r.ctx, m.ID, path), fault.Unsupported)
	r.running(m)
	if _, err := os.Stat(path); err == nil {
		r.Error("a Save that is unsupported left a file")
	}
}

func console(r *rig) {
	m := r.started()
	consoler := r.driver.(hypervisor.Consoler)
	log, err := consoler.ConsoleLog(r.ctx, m.ID, 5)
	r.must(err)
	if len(log) > 5 {
		r.Errorf("asked for the last 5 bytes of the console log, got %d", len(log))
	}
	first, err := consoler.Console(r.ctx, m.ID)
	r.must(err)
	defer first.Close()
	second, err := consoler.Console(r.ctx, m.ID)
	r.must(err)
	if r.ConsoleInput != "" {
		_, err = io.WriteString(first, r.ConsoleInput)
		r.must(err)
		r.expect("first", first)
		r.expect("second", second)
	}
	r.must(second.Close())
	r.running(m)
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, first)
		ended <- err
	}()
	r.must(r.driver.Kill(r.ctx, m.ID))
	select {
	case <-ended:
	case <-time.After(r.Patience):
		r.Error("a console does not end with its machine")
		first.Close()
		<-ended
	}
}

// expect reads until the console's answer is there.
func (r *rig) expect(name string, c io.ReadCloser) {
	r.Helper()
	stop := time.AfterFunc(r.Patience, func() { c.Close() })
	defer stop.Stop()
	var got []byte
	buffer := make([]byte, 4096)
	for !bytes.Contains(got, []byte(r.ConsoleOutput)) {
		n, err := c.Read(buffer)
		got = append(got, buffer[:n]...)
		if err != nil {
			r.Fatalf("%s console: %v after %q, want %q", name, err, got, r.ConsoleOutput)
		}
	}
}

func usage(r *rig) {
	m := r.started()
	meter := r.driver.(hypervisor.Meter)
	first, err := meter.Usage(r.ctx, m.ID)
	r.must(err)
	if first.MemoryBytes <= 0 || first.CPUSeconds < 0 {
		r.Errorf("usage %+v", first)
	}
	second, err := meter.Usage(r.ctx, m.ID)
	r.must(err)
	if second.CPUSeconds < first.CPUSeconds {
		r.Errorf("CPU seconds went back from %v to %v", first.CPUSeconds, second.CPUSeconds)
	}
	r.must(r.driver.Kill(r.ctx, m.ID))
	if u, err := meter.Usage(r.ctx, m.ID); err == nil {
		r.Errorf("usage %+v of a machine that does not run", u)
	}
}

func freeze(r *rig) {
	m := r.started()
	freezer := r.driver.(hypervisor.Freezer)
	called := 0
	r.must(freezer.Freeze(r.ctx, m.ID, func() error { called++; return nil }))
	r.running(m)
	own := errors.New("copying failed")
	if err := freezer.Freeze(r.ctx, m.ID, func() error { called++; return own }); !errors.Is(err, own) {
		r.Errorf("freeze returned %v, want the function's own error", err)
	}
	if called != 2 {
		r.Errorf("function was called %d times, want 2", called)
	}
	r.running(m)
	r.must(r.driver.Shutdown(r.ctx, m.ID)) // it still listens
	r.awaitStatus(m, hypervisor.Off)
}

// races lets Start, Kill and Remove of one machine loose on each other: a cancel racing a delete.
func races(r *rig) {
	m := r.machine()
	for range r.Rounds {
		var group sync.WaitGroup
		for _, operation := range []func() error{
			func() error { return r.driver.Start(r.ctx, m) },
			func() error { return r.driver.Kill(r.ctx, m.ID) },
			func() error { return r.driver.Remove(r.ctx, m.ID) },
			func() error { return r.driver.Start(r.ctx, m) },
			func() error { return r.driver.Shutdown(r.ctx, m.ID) },
			func() error { return r.driver.Reboot(r.ctx, m.ID, true) },
		} {
			group.Go(func() {
				if err := operation(); err != nil {
					r.class(err, fault.Busy, fault.NotFound, fault.WrongState)
				}
			})
		}
		group.Wait()
		if d, ok := r.list()[m.ID]; ok && d.Status == hypervisor.Running && !r.NoProcess && !alive(d.PID) {
			r.awaitStatus(m, hypervisor.Off) // a Shutdown may have been the last word
		}
		r.must(r.driver.Remove(r.ctx, m.ID))
		r.gone(m)
	}
	r.must(r.driver.Start(r.ctx, m))
	r.running(m)
}

func many(r *rig) {
	var group sync.WaitGroup
	for range r.Many {
		m := r.machine()
		group.Go(func() {
			if err := r.driver.Start(r.ctx, m); err != nil {
				r.Errorf("machine %d: %v", m.ID, err)
			}
		})
	}
	group.Wait()
	domains := r.list()
	for _, m := range r.machines {
		if domains[m.ID].Status != hypervisor.Running {
			r.Errorf("machine %d is %+v", m.ID, domains[m.ID])
		}
	}
	for _, m := range r.machines {
		group.Go(func() {
			if err := r.driver.Remove(r.ctx, m.ID); err != nil {
				r.Errorf("machine %d: %v", m.ID, err)
			}
		})
	}
	group.Wait()
	for _, m := range r.machines {
		r.gone(m)
	}
}
