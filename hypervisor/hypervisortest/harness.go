// Package hypervisortest is the conformance suite of hypervisor drivers: each sentence of the contract
// in package hypervisor is a test that every driver runs. Where the contract leaves a choice, the suite
// settles it, the same for all drivers:
//
//   - a domain that does not exist: Remove succeeds; Shutdown, Kill, Reboot, Save, Console, ConsoleLog and
//     Usage say fault.NotFound;
//   - a domain that does not run: Shutdown and Kill succeed; Reboot and Save say fault.WrongState (Save may
//     say fault.Unsupported);
//   - after Kill the status is Off (it was requested), after Save too;
//   - a machine whose first Start failed or was interrupted is not listed.
package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/internal/leaktest"
)

// Harness is what the suite must know of a driver. Hooks that are nil leave out the tests that need them,
// which the suite says in the log.
type Harness struct {
	// New makes a driver over stateDir; called again over the same directory it must adopt what runs.
	// A driver that has Close (io.Closer) is closed by the suite.
	New func(t testing.TB, stateDir string) hypervisor.Driver
	// Machine is a runnable machine with a Dir of its own, all made for the test t.
	Machine func(t testing.TB, id int) hypervisor.Machine
	// Failing is a machine that the driver accepts and that fails to start.
	Failing func(t testing.TB, id int) hypervisor.Machine
	// Slow is a machine whose Start takes an hour, or whatever the driver allows at most.
	Slow func(t testing.TB, id int) hypervisor.Machine
	// Invalid is a machine that the driver must refuse with fault.Invalid, and the text that names the part.
	Invalid func(t testing.TB, id int) (m hypervisor.Machine, part string)
	// PowerOff makes the guest power itself off. d is nil while no driver is there.
	PowerOff func(t testing.TB, stateDir string, d hypervisor.Driver, m hypervisor.Machine)
	// KillProcess kills the machine's process from outside. d is nil while no driver is there.
	KillProcess func(t testing.TB, stateDir string, d hypervisor.Driver, m hypervisor.Machine)
	// Leftovers names what is on the host of a machine that should be gone: processes, ports, mounts, cgroups.
	Leftovers func(t testing.TB, m hypervisor.Machine) []string

	BootMark      string        // what a guest writes to its console once per boot, when it is up
	ConsoleInput  string        // what to type on a console ...
	ConsoleOutput string        // ... and a text that comes back for it
	Console       bool          // the driver is a hypervisor.Consoler
	Meter         bool          // and a hypervisor.Meter
	Freeze        bool          // and a hypervisor.Freezer
	Save          bool          // Save works; else it must be fault.Unsupported
	NoProcess     bool          // machines have no process: PID is 0
	FirstID       int           // of the machines; tests count up from here
	Many          int           // machines in the parallel test; 0: 8
	Rounds        int           // of the races; 0: 10
	Patience      time.Duration // for what a guest does by itself; 0: 2 minutes
}

// rig is one test's driver and machines.
type rig struct {
	testing.TB
	Harness
	ctx      context.Context
	stateDir string
	driver   hypervisor.Driver
	machines []hypervisor.Machine
}

// Run runs the suite as subtests of t.
func Run(t *testing.T, h Harness) {
	if h.Many == 0 {
		h.Many = 8
	}
	if h.Rounds == 0 {
		h.Rounds = 10
	}
	if h.Patience == 0 {
		h.Patience = 2 * time.Minute
	}
	next := h.FirstID
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			if why := c.missing(h); why != "" {
				t.Logf("left out for this driver: %s", why)
				return
			}
			before := goleak.IgnoreCurrent()
			own := h
			own.FirstID = next
			next += 100
			r := newRig(t, own)
			defer func() {
				if err := leaktest.Find(before); err != nil {
					t.Error(err)
				}
			}()
			defer r.close()
			c.run(r)
		})
	}
}

func newRig(t *testing.T, h Harness) *rig {
	stateDir, err := os.MkdirTemp("", "hv") // short: sockets live below it
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, Harness: h, ctx: t.Context(), stateDir: stateDir}
	r.driver = h.New(t, stateDir)
	return r
}

// close removes what the test left, also after it failed.
func (r *rig) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if r.driver == nil {
		r.driver = r.New(r, r.stateDir)
	}
	for _, m := range r.machines {
		if err := r.driver.Remove(ctx, m.ID); err != nil {
			r.Errorf("removing machine %d at the end: %v", m.ID, err)
		}
		r.noLeftovers(m)
	}
	r.away()
	os.RemoveAll(r.stateDir)
}

// away ends the driver, as a restart of the agent does; back adopts.
func (r *rig) away() {
	if c, ok := r.driver.(io.Closer); ok {
		if err := c.Close(); err != nil {
			r.Errorf("close: %v", err)
		}
	}
	r.driver = nil
}

func (r *rig) back() { r.driver = r.New(r, r.stateDir) }

func (r *rig) machine() hypervisor.Machine { return r.keep(r.Machine(r, r.FirstID+len(r.machines))) }

func (r *rig) keep(m hypervisor.Machine) hypervisor.Machine {
	r.machines = append(r.machines, m)
	return m
}

// started is a machine that runs and whose guest is up.
func (r *rig) started() hypervisor.Machine {
	r.Helper()
	m := r.machine()
	r.must(r.driver.Start(r.ctx, m))
	r.awaitBoots(m, 1)
	return m
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) class(err error, allowed ...fault.Class) {
	r.Helper()
	for _, c := range allowed {
		if fault.Is(err, c) {
			return
		}
	}
	r.Errorf("error %v is of class %v, want %v", err, fault.ClassOf(err), allowed)
}

func (r *rig) list() map[int]hypervisor.Domain {
	r.Helper()
	domains, err := r.driver.List(r.ctx)
	r.must(err)
	byID := make(map[int]hypervisor.Domain)
	for i, d := range domains {
		if i > 0 && domains[i-1].ID >= d.ID {
			r.Errorf("list is not ordered by id: %d before %d", domains[i-1].ID, d.ID)
		}
		if running := d.Status == hypervisor.Running || d.Status == hypervisor.Paused; !running && (d.PID != 0 || !d.Started.IsZero()) {
			r.Errorf("domain %d is %s but has pid %d, started %v", d.ID, d.Status, d.PID, d.Started)
		}
		byID[d.ID] = d
	}
	return byID
}

// running returns the domain, which must run now.
func (r *rig) running(m hypervisor.Machine) hypervisor.Domain {
	r.Helper()
	d, ok := r.list()[m.ID]
	if !ok || d.Status != hypervisor.Running {
		r.Fatalf("domain %d: %+v (listed: %v), want running", m.ID, d, ok)
	}
	if !r.NoProcess && !alive(d.PID) {
		r.Errorf("domain %d: pid %d does not live", m.ID, d.PID)
	}
	return d
}

// awaitStatus waits for what a guest or a process does by itself.
func (r *rig) awaitStatus(m hypervisor.Machine, want hypervisor.Status) hypervisor.Domain {
	r.Helper()
	var d hypervisor.Domain
	r.await("domain "+strconv.Itoa(m.ID)+" is "+string(want), func() bool {
		d = r.list()[m.ID]
		return d.Status == want
	})
	return d
}

func (r *rig) await(what string, holds func() bool) {
	r.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(r.Patience)
	defer limit.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-limit.C:
			r.Fatalf("not within %v: %s; domains now: %+v", r.Patience, what, r.list())
		}
	}
}

func (r *rig) boots(m hypervisor.Machine) int {
	log, err := r.driver.(hypervisor.Consoler).ConsoleLog(r.ctx, m.ID, 1<<20)
	r.must(err)
	return bytes.Count(log, []byte(r.BootMark))
}

func (r *rig) awaitBoots(m hypervisor.Machine, n int) {
	r.Helper()
	if !r.Console || r.BootMark == "" {
		return
	}
	r.await("boot "+strconv.Itoa(n)+" in the console log of domain "+strconv.Itoa(m.ID), func() bool { return r.boots(m) >= n })
}

func (r *rig) gone(m hypervisor.Machine) {
	r.Helper()
	if d, ok := r.list()[m.ID]; ok {
		r.Errorf("domain %d is still listed: %+v", m.ID, d)
	}
	r.noLeftovers(m)
}

func (r *rig) noLeftovers(m hypervisor.Machine) {
	r.Helper()
	if r.Leftovers == nil {
		return
	}
	for _, what := range r.Leftovers(r, m) {
		r.Errorf("left behind by machine %d: %s", m.ID, what)
	}
}

// alive reports whether the process lives; a zombie does not.
func alive(pid int) bool {
	if pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')'):], []byte(" "))
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}
