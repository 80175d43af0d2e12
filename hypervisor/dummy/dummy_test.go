package dummy_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/dummy"
	"hayloft/hypervisor/hypervisortest"
	"hayloft/internal/leaktest"
)

func open(t testing.TB, dir string) *dummy.Driver {
	t.Helper()
	d, err := dummy.New(dummy.Config{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func machine(t testing.TB, id int, knobs ...string) hypervisor.Machine {
	m := hypervisor.Machine{ID: id, Name: "vm-" + strconv.Itoa(id), VCPU: 1, MemoryMB: 64, Simulated: map[string]string{}}
	for i := 0; i < len(knobs); i += 2 {
		m.Simulated[knobs[i]] = knobs[i+1]
	}
	return m
}

// act does something to a machine through the driver that is there, or through one of its own.
func act(t testing.TB, dir string, d hypervisor.Driver, do func(*dummy.Driver) error) {
	if d == nil {
		own := open(t, dir)
		defer own.Close()
		d = own
	}
	if err := do(d.(*dummy.Driver)); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	hypervisortest.Run(t, hypervisortest.Harness{
		New:     func(t testing.TB, dir string) hypervisor.Driver { return open(t, dir) },
		Machine: func(t testing.TB, id int) hypervisor.Machine { return machine(t, id, "SHUTDOWN_DELAY", "3ms") },
		Failing: func(t testing.TB, id int) hypervisor.Machine { return machine(t, id, "FAIL_START", "no luck") },
		Slow:    func(t testing.TB, id int) hypervisor.Machine { return machine(t, id, "BOOT_DELAY", "1h") },
		Invalid: func(t testing.TB, id int) (hypervisor.Machine, string) {
			return machine(t, id, "BOOT_DELAY", "soon"), "BOOT_DELAY"
		},
		PowerOff: func(t testing.TB, dir string, d hypervisor.Driver, m hypervisor.Machine) {
			act(t, dir, d, func(d *dummy.Driver) error { return d.PowerOff(t.Context(), m.ID) })
		},
		KillProcess: func(t testing.TB, dir string, d hypervisor.Driver, m hypervisor.Machine) {
			act(t, dir, d, func(d *dummy.Driver) error { return d.Crash(t.Context(), m.ID) })
		},
		BootMark: "boot ", ConsoleInput: "hello\n", ConsoleOutput: "hello",
		Console: true, Meter: true, Freeze: true, Save: true, NoProcess: true, Many: 200, Rounds: 50,
	})
}

func TestKnobs(t *testing.T) {
	for _, row := range []struct {
		knobs  []string
		after  time.Duration
		status hypervisor.Status
		reason string
	}{
		{[]string{"OFF_AFTER", "10"}, 9 * time.Second, hypervisor.Running, ""},
		{[]string{"OFF_AFTER", "10"}, 10 * time.Second, hypervisor.Off, "powered itself off after 10s"},
		{[]string{"CRASH_AFTER", "1m", "OFF_AFTER", "2m"}, 3 * time.Minute, hypervisor.Crashed, "simulated crash after 1m0s"},
		{[]string{"CRASH_AFTER", "2m", "OFF_AFTER", "1m"}, 3 * time.Minute, hypervisor.Off, "powered itself off after 1m0s"},
	} {
		t.Run(strings.Join(row.knobs, " ")+" at "+row.after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				d := open(t, dir)
				if err := d.Start(t.Context(), machine(t, 1, row.knobs...)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(row.after)
				synctest.Wait()
				live, _ := d.List(t.Context())
				d.Close()
				again := open(t, dir)
				adopted, _ := again.List(t.Context())
				again.Close()
				for _, domains := range [][]hypervisor.Domain{live, adopted} {
					if len(domains) != 1 || domains[0].Status != row.status || domains[0].Reason != row.reason {
						t.Errorf("domains %+v, want %s %q", domains, row.status, row.reason)
					}
				}
			})
		})
	}
}

func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, t.TempDir())
		defer d.Close()
		began := time.Now()
		if err := d.Start(t.Context(), machine(t, 1, "BOOT_DELAY", "5", "SHUTDOWN_DELAY", "7s", "CPU_LOAD", "0.5")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("start took %v, want BOOT_DELAY", took)
		}
		time.Sleep(10 * time.Second)
		if u, err := d.Usage(t.Context(), 1); err != nil || u.CPUSeconds != 5 || u.MemoryBytes != 64<<20 {
			t.Errorf("usage %+v, %v; want 5 CPU seconds and 64 MB", u, err)
		}
		events := d.Events(t.Context())
		<-events // the start
		if err := d.Shutdown(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		<-events // the request
		began = time.Now()
		<-events
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("the end came after %v, want SHUTDOWN_DELAY", took)
		}
	})
}

func TestRefuseShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, t.TempDir())
		defer d.Close()
		if err := d.Start(t.Context(), machine(t, 1, "REFUSE_SHUTDOWN", "yes")); err != nil {
			t.Fatal(err)
		}
		if err := d.Shutdown(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if domains, _ := d.List(t.Context()); domains[0].Status != hypervisor.Running {
			t.Errorf("refusing machine is %s", domains[0].Status)
		}
	})
}

func TestSeededFailures(t *testing.T) {
	failed := func() (failed []int) {
		d := open(t, t.TempDir())
		defer d.Close()
		for id := range 400 {
			if err := d.Start(t.Context(), machine(t, id, "FAIL_PROBABILITY", "0.25", "SEED", "7")); err != nil {
				failed = append(failed, id)
			}
		}
		return failed
	}
	first, second := failed(), failed()
	if len(first) < 60 || len(first) > 140 {
		t.Errorf("%d of 400 failed, want about 100", len(first))
	}
	if len(first) != len(second) || first[0] != second[0] {
		t.Errorf("the same seed failed %v and %v", first, second)
	}
}

func TestBadKnobsAreRefused(t *testing.T) {
	for key, value := range map[string]string{
		"BOOT_DELAY": "-1s", "OFF_AFTER": "soon", "FAIL_PROBABILITY": "1.5", "CPU_LOAD": "NaN", "REFUSE_SHUTDOWN": "maybe",
		"SEED": "x", "COLOUR": "red",
	} {
		_, err := dummy.Behaviour{}.Parse(map[string]string{key: value})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%s: %v, want invalid, naming the key", key, value, err)
		}
	}
}

func TestDamagedRecordIsACrashedMachine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "3.json"), []byte(`{"ID":3,`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, dir)
	defer d.Close()
	domains, _ := d.List(t.Context())
	if len(domains) != 1 || domains[0].ID != 3 || domains[0].Status != hypervisor.Crashed {
		t.Errorf("domains %+v, want machine 3 crashed", domains)
	}
	if err := d.Remove(t.Context(), 3); err != nil {
		t.Error(err)
	}
}

func TestTenThousandMachines(t *testing.T) {
	defer func() {
		if err := leaktest.Find(); err != nil {
			t.Error(err)
		}
	}()
	d := open(t, "")
	defer d.Close()
	for id := range 10000 {
		if err := d.Start(t.Context(), machine(t, id, "OFF_AFTER", "1h")); err != nil {
			t.Fatal(err)
		}
	}
	domains, err := d.List(t.Context())
	if err != nil || len(domains) != 10000 || domains[9999].Status != hypervisor.Running {
		t.Errorf("%d machines, %v", len(domains), err)
	}
	if n := runtime.NumGoroutine(); n > 1000 {
		t.Errorf("%d goroutines for 10,000 machines", n)
	}
	if err := d.Remove(t.Context(), 5000); err != nil {
		t.Error(err)
	}
}

func TestThousandMachinesAreAdopted(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	var group sync.WaitGroup
	for id := range 1000 {
		group.Go(func() {
			if err := d.Start(t.Context(), machine(t, id)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	d.Close()
	d = open(t, dir)
	defer d.Close()
	domains, err := d.List(t.Context())
	if err != nil || len(domains) != 1000 || domains[999].Status != hypervisor.Running {
		t.Errorf("adopted %d machines, %v", len(domains), err)
	}
}
