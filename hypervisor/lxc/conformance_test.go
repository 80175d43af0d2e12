package lxc

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/hypervisortest"
	"hayloft/lab/labtest"
)

func TestConformance(t *testing.T) {
	labtest.Root(t, "lxc-start", "busybox")
	lower := userland(t)
	hypervisortest.Run(t, hypervisortest.Harness{
		New:     func(t testing.TB, stateDir string) hypervisor.Driver { return newDriver(t, stateDir) },
		Machine: func(t testing.TB, id int) hypervisor.Machine { return plugged(guest(t, lower, id)) },
		Failing: func(t testing.TB, id int) hypervisor.Machine {
			m := plugged(guest(t, lower, id))
			m.Raw = "lxc.init.cmd = /no/such/init"
			return m
		},
		Slow: func(t testing.TB, id int) hypervisor.Machine {
			m := plugged(guest(t, lower, id))
			m.Raw = "lxc.hook.pre-start = /bin/sleep 3600"
			return m
		},
		Invalid: func(t testing.TB, id int) (hypervisor.Machine, string) {
			m := plugged(guest(t, lower, id))
			m.NICs[0].Bridge = "br0\nlxc.hook.pre-start = /bin/false"
			return m, "NIC 0"
		},
		PowerOff: func(t testing.TB, stateDir string, _ hypervisor.Driver, m hypervisor.Machine) {
			monitor, first := processesOf(t, stateDir, m.ID)
			if err := unix.Kill(first.PID, unix.SIGPWR); err != nil {
				t.Fatal(err)
			}
			monitor.exits(t.Context(), orderly)
		},
		KillProcess: func(t testing.TB, stateDir string, _ hypervisor.Driver, m hypervisor.Machine) {
			monitor, first := processesOf(t, stateDir, m.ID)
			if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			monitor.exits(t.Context(), orderly)
		},
		Leftovers: leftovers,
		BootMark:  bootMark, ConsoleInput: "ping\n", ConsoleOutput: "got ping",
		Console: true, Meter: true, Freeze: true, FirstID: 1000, Many: 20,
	})
}

// TestLayouts runs the suite again where the control groups look like those of other hosts.
func TestLayouts(t *testing.T) {
	labtest.Root(t, "lxc-start", "busybox")
	for _, layout := range []string{"v1", "v2"} {
		t.Run(layout, func(t *testing.T) {
			out, err := inside(layout, "-test.v", "-test.run=^(TestConformance|TestLimits)$").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestConformance ") {
				t.Errorf("%v:\n%s", err, out)
			}
			// This process sees all hierarchies, also those that the other could not.
			if tree, err := cgroup.New(testTree()); err != nil {
				t.Error(err)
			} else if names, err := tree.List(); err != nil || len(names) > 0 {
				t.Errorf("control groups left: %v, %v", names, err)
			}
		})
	}
}
