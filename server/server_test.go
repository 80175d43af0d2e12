package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/agent"
	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/way"
	"hayloft/hypervisor"
	"hayloft/hypervisor/dummy"
	"hayloft/internal/leaktest"
	"hayloft/network"
	"hayloft/server"
	"hayloft/server/api"
	"hayloft/server/api/client"
	"hayloft/server/scheduler"
	"hayloft/store/memory"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// noNetwork is for machines without NICs: whatever is asked of it is a mistake.
type noNetwork struct{ network.Driver }

func (noNetwork) Ports(context.Context) ([]string, error) { return nil, nil }

// site is an installation in this process: servers over one store in memory, hosts of simulated machines.
type site struct {
	t     *testing.T
	store *memory.Store
	dir   string
	grace time.Duration           // before an absent host is given up
	way   func(disk.Way) disk.Way // nil: as it is
	stops map[string]func()
}

func newSite(t *testing.T) *site {
	s := &site{t: t, store: memory.New(), dir: t.TempDir(), grace: time.Hour, stops: map[string]func(){}}
	t.Cleanup(func() {
		for _, stop := range s.stops {
			stop()
		}
		_ = s.store.Close()
	})
	return s
}

// start runs something until stop(name); the context ends it.
func (s *site) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			s.t.Errorf("%s: %v", name, err)
		}
	})
	s.stops[name] = sync.OnceFunc(func() {
		cancel()
		group.Wait()
	})
}

func (s *site) stop(name string) {
	s.stops[name]()
	delete(s.stops, name)
}

func (s *site) socket(name string) string { return filepath.Join(s.dir, name+".sock") }

// server runs one; all of a site share their authority.
func (s *site) server(name string) *client.Client {
	s.t.Helper()
	srv, err := server.New(s.t.Context(), server.Config{
		Name: name, StateDir: filepath.Join(s.dir, "server"), Store: s.store, FleetSocket: s.socket(name + "-fleet"), Socket: s.socket(name),
		Scheduler: scheduler.Scheduler{Policy: scheduler.Striping}, HostGrace: s.grace, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.start(name, srv.Run)
	c, err := client.New(client.Config{Endpoint: "unix://" + s.socket(name)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	s.until("server "+name+" answers", func(ctx context.Context) bool {
		_, err := c.Version(ctx)
		return err == nil
	})
	return c
}

// host runs an agent of simulated machines that speaks to the named server.
func (s *site) host(c *client.Client, name, serverName string) {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	var token string
	if !agent.Enrolled(dir) {
		made, err := c.CreateHost(s.t.Context(), name, "")
		if err != nil {
			s.t.Fatal(err)
		}
		token = made.Token
	}
	driver, err := dummy.New(dummy.Config{StateDir: filepath.Join(dir, "dummy")})
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := way.New(way.Config{Root: filepath.Join(dir, "store")})
	if err != nil {
		s.t.Fatal(err)
	}
	disks := disk.Way(w)
	if s.way != nil {
		disks = s.way(w)
	}
	a, err := agent.New(agent.Config{Name: name, StateDir: dir, Server: "localhost:0", Token: token, Network: noNetwork{}, Way: disks,
		Hypervisors: map[string]hypervisor.Driver{"dummy": driver}, CPU: 64, Memory: 64 << 30,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket(serverName+"-fleet"))
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.start(name, func(ctx context.Context) error {
		defer driver.Close()
		return a.Run(ctx)
	})
	s.until("host "+name+" is connected", func(ctx context.Context) bool {
		h, err := c.Host(ctx, name)
		return err == nil && h.State == cloud.HostStateMonitored && h.Connected && len(h.Hypervisor) > 0
	})
}

// patience is how long tests wait for what must come, on a machine with much else to do.
const patience = 2 * time.Minute

// until asks again and again.
func (s *site) until(what string, ok func(context.Context) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("never: %s", what)
		}
	}
}

func (s *site) vms(c *client.Client) []api.VM {
	s.t.Helper()
	vms, err := c.VMs(s.t.Context(), true)
	if err != nil {
		s.t.Fatal(err)
	}
	return vms
}

func (s *site) all(c *client.Client, want cloud.Phase) {
	s.t.Helper()
	s.until(fmt.Sprintf("all machines are %v", want), func(context.Context) bool {
		for _, vm := range s.vms(c) {
			if vm.Phase() != want {
				return false
			}
		}
		return true
	})
}

const simulated = "CPU=0.1\nMEMORY=16\nHYPERVISOR=dummy\n"

func TestMachinesLiveAndGo(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	s.host(c, "node1", "one")
	s.host(c, "node2", "one")
	if _, err := c.CreateVMs(t.Context(), api.CreateVMs{Text: simulated, Name: "m", Count: 40}); err != nil {
		t.Fatal(err)
	}
	on := cloud.Active(cloud.LCMRunning)
	s.all(c, on)
	per := map[string]int{}
	for _, vm := range s.vms(c) {
		per[vm.HostName]++
		if tm := vm.Timing; tm.Submitted > tm.Scheduled || tm.Scheduled == 0 || tm.BootEnd < tm.BootStart || tm.Running == 0 {
			t.Errorf("vm %d: timing %+v", vm.ID, tm)
		}
	}
	if per["node1"] != 20 || per["node2"] != 20 {
		t.Errorf("striping put %v", per)
	}
	act := func(action string, want cloud.Phase) {
		t.Helper()
		for _, vm := range s.vms(c) {
			if err := c.Act(t.Context(), vm.ID, action); err != nil {
				t.Fatal(err)
			}
		}
		s.all(c, want)
	}
	act("suspend", cloud.At(cloud.StateSuspended))
	act("resume", on)
	act("poweroff", cloud.At(cloud.StatePoweroff))
	act("resume", on)
	act("reboot", on)
	act("terminate", cloud.At(cloud.StateDone))
	if h, err := c.Host(t.Context(), "node1"); err != nil || len(h.VMs) != 0 || h.UsedMemoryMB != 0 {
		t.Errorf("host after all: %+v, %v", h, err)
	}
}

// Two servers share a store; agents speak to one each. Nothing is done twice, and when one server goes,
// the other carries on.
func TestTwoServers(t *testing.T) {
	s := newSite(t)
	c1 := s.server("one")
	c2 := s.server("two")
	s.host(c1, "node1", "one")
	s.host(c2, "node2", "two")
	var group sync.WaitGroup
	for _, c := range []*client.Client{c1, c2} {
		group.Go(func() {
			for range 10 {
				if _, err := c.CreateVMs(context.Background(), api.CreateVMs{Text: simulated, Count: 3}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	var vms []api.VM
	s.until("the second server shows the machines of the first too", func(context.Context) bool {
		vms = s.vms(c2)
		return len(vms) >= 60
	})
	s.all(c2, cloud.Active(cloud.LCMRunning))
	if vms = s.vms(c2); len(vms) != 60 {
		t.Errorf("%d machines, want 60", len(vms))
	}
	for _, vm := range vms {
		if len(vm.History) != 1 || vm.Orders.Epoch != 1 {
			t.Errorf("vm %d was deployed %d times, epoch %d", vm.ID, len(vm.History), vm.Orders.Epoch)
		}
	}
	s.stop("node1")
	s.stop("one")
	if _, err := c2.CreateVMs(t.Context(), api.CreateVMs{Text: simulated, Name: "later", Count: 5}); err != nil {
		t.Fatal(err)
	}
	s.until("machines made after the first server ended run on the second's host", func(context.Context) bool {
		running := 0
		for _, vm := range s.vms(c2) {
			if vm.ID >= 60 && vm.Phase() == cloud.Active(cloud.LCMRunning) && vm.HostName == "node2" {
				running++
			}
		}
		return running == 5
	})
	s.host(c2, "node1", "two") // comes back by way of the other server
	s.all(c2, cloud.Active(cloud.LCMRunning))
}

// A machine that fits nowhere waits, says why host by host, and goes when there is room.
func TestWhyAMachineWaits(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	s.host(c, "node1", "one")
	made, err := c.CreateVMs(t.Context(), api.CreateVMs{Text: "CPU=1\nMEMORY=1000000\nHYPERVISOR=dummy"})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0]
	want := "host node1 has 65536 MB of memory free, 1000000 needed"
	s.until("it says "+want, func(ctx context.Context) bool {
		vm, err := c.VM(ctx, id)
		return err == nil && vm.State == cloud.StatePending && vm.SchedMessage == want
	})
	if err := c.Resize(t.Context(), id, api.Resize{MemoryMB: 100}); err != nil {
		t.Fatal(err)
	}
	s.all(c, cloud.Active(cloud.LCMRunning))
}

// What a simulated machine does wrong shows in its record, and can be put right.
func TestFailuresAndRecovery(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	s.host(c, "node1", "one")
	made, err := c.CreateVMs(t.Context(), api.CreateVMs{Text: simulated + "DUMMY=[FAIL_START=\"no such luck\"]"})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0]
	failed := cloud.Active(cloud.LCMBootFailure)
	s.all(c, failed)
	if vm, _ := c.VM(t.Context(), id); vm.Error == "" || vm.Orders.Epoch != 1 {
		t.Errorf("error %q, epoch %d", vm.Error, vm.Orders.Epoch)
	}
	if err := c.Recover(t.Context(), id, "retry"); err != nil {
		t.Fatal(err)
	}
	s.until("the second try is over", func(ctx context.Context) bool {
		vm, err := c.VM(ctx, id)
		return err == nil && vm.Orders.Epoch == 2 && vm.Phase() == failed
	})
	if err := c.Recover(t.Context(), id, "delete"); err != nil {
		t.Fatal(err)
	}
	s.all(c, cloud.At(cloud.StateDone))
}

// The console goes from the caller through server and agent to the machine and back.
func TestConsole(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	s.host(c, "node1", "one")
	made, err := c.CreateVMs(t.Context(), api.CreateVMs{Text: simulated})
	if err != nil {
		t.Fatal(err)
	}
	s.all(c, cloud.Active(cloud.LCMRunning))
	console, err := c.Tunnel(t.Context(), made[0], client.TunnelConsole, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	const word = "echo this\n"
	if _, err := console.Write([]byte(word)); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	buffer := make([]byte, 256)
	for !strings.Contains(seen.String(), "echo this") {
		n, err := console.Read(buffer)
		if err != nil {
			t.Fatalf("after %q: %v", seen.String(), err)
		}
		seen.Write(buffer[:n])
	}
	if _, err := c.Tunnel(t.Context(), made[0], client.TunnelVNC, 0); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no screen") {
		t.Errorf("screen of a machine without one: %v", err)
	}
	if _, err := c.Tunnel(t.Context(), 99, client.TunnelConsole, 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("console of no machine: %v", err)
	}
}

// A watch shows what there is, then what changes, until the machine is gone.
func TestWatch(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	s.host(c, "node1", "one")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var states []string
	synced, terminated := false, false
	for event, err := range c.Watch(ctx, cloud.KindVM) {
		if err != nil {
			t.Fatal(err)
		}
		if event.Synced {
			synced = true
			if _, err := c.CreateVMs(ctx, api.CreateVMs{Text: simulated, Name: "seen"}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var vm api.VM
		if err := json.Unmarshal(event.Object, &vm); err != nil {
			t.Fatal(err)
		}
		states = append(states, vm.StateName)
		if vm.Phase() == cloud.Active(cloud.LCMRunning) && !terminated { // a state may be shown twice
			terminated = true
			if err := c.Act(ctx, vm.ID, "terminate-hard"); err != nil {
				t.Fatal(err)
			}
		}
		if vm.State == cloud.StateDone && vm.HostID < 0 {
			break
		}
	}
	if !synced || !slices.Contains(states, "RUNNING") || states[len(states)-1] != "DONE" {
		t.Fatalf("synced %v, saw %v", synced, states)
	}
}

// Machines of a host that stays away are UNKNOWN; they are found again when it is back, and have not been
// started anew.
func TestHostGoesAndComesBack(t *testing.T) {
	s := newSite(t)
	s.grace = 50 * time.Millisecond
	c := s.server("one")
	s.host(c, "node1", "one")
	if _, err := c.CreateVMs(t.Context(), api.CreateVMs{Text: simulated, Count: 5}); err != nil {
		t.Fatal(err)
	}
	s.all(c, cloud.Active(cloud.LCMRunning))
	s.stop("node1")
	s.all(c, cloud.Active(cloud.LCMUnknown))
	for _, vm := range s.vms(c) {
		if !strings.Contains(vm.Error, "host node1 is not connected") {
			t.Errorf("vm %d: %q", vm.ID, vm.Error)
		}
	}
	if h, err := c.Host(t.Context(), "node1"); err != nil || h.State != cloud.HostStateError {
		t.Errorf("host: %v, %v", h.State, err)
	}
	s.host(c, "node1", "one")
	s.all(c, cloud.Active(cloud.LCMRunning))
	for _, vm := range s.vms(c) {
		if vm.Orders.Epoch != 1 || vm.Error != "" {
			t.Errorf("vm %d: epoch %d, error %q", vm.ID, vm.Orders.Epoch, vm.Error)
		}
	}
}

// A machine deleted from the database while its host is away is removed there when the host is back.
func TestDeletedWhileItsHostIsAway(t *testing.T) {
	s := newSite(t)
	s.grace = 20 * time.Millisecond
	c := s.server("one")
	s.host(c, "node1", "one")
	made, err := c.CreateVMs(t.Context(), api.CreateVMs{Text: simulated})
	if err != nil {
		t.Fatal(err)
	}
	s.all(c, cloud.Active(cloud.LCMRunning))
	s.stop("node1")
	s.all(c, cloud.Active(cloud.LCMUnknown))
	if err := c.Recover(t.Context(), made[0], "delete-db"); err != nil {
		t.Fatal(err)
	}
	if vm, err := c.VM(t.Context(), made[0]); err != nil || vm.State != cloud.StateDone || vm.HostName != "node1" {
		t.Fatalf("deleted: %v on %q, %v", vm.Phase(), vm.HostName, err)
	}
	s.host(c, "node1", "one")
	s.until("the host has removed it", func(ctx context.Context) bool {
		vm, err := c.VM(ctx, made[0])
		return err == nil && vm.HostID < 0
	})
}
