package lifecycle

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/inventory"
	"hayloft/store"
	"hayloft/store/memory"
)

// TestAbsences: a host's time is up when it was away for as long as the grace, however many are, and again as long as it stays away.
func TestAbsences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsences(time.Minute)
		defer a.stop()
		hosts := make([]cloud.Host, 200)
		for i := range hosts {
			hosts[i] = cloud.Host{ID: i, State: cloud.HostStateMonitored}
		}
		unfinished := func(host int) bool { return host == 7 }
		look := func() []int {
			a.watch(hosts, unfinished)
			synctest.Wait()
			return a.take()
		}
		is := func(when string, got, want []int) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		is("at first", look(), nil)
		time.Sleep(59 * time.Second)
		hosts[3].Session = "back"
		is("in time", look(), nil)
		time.Sleep(time.Second)
		hosts[4].Session = "back"
		<-a.wake
		a.watch(hosts, unfinished)
		hosts[4].Session = "" // and gone again, when its time had been up
		got := look()
		if len(got) != 198 || slices.Contains(got, 3) || slices.Contains(got, 4) {
			t.Errorf("after the grace: %d hosts, %v", len(got), got)
		}
		for i := range hosts {
			if hosts[i].State = cloud.HostStateError; i == 9 {
				hosts[i].State = cloud.HostStateMonitored // nobody could give it up
			}
		}
		look()
		time.Sleep(time.Minute)
		is("once more", look(), []int{7, 9})
	})
}

// TestGivingUpIsFinished: machines of a host that a server had given up only halfway when it died are UNKNOWN at last.
func TestGivingUpIsFinished(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	st := memory.New()
	defer st.Close()
	log := slog.New(slog.DiscardHandler)
	inv, err := inventory.Open(ctx, st, log)
	if err != nil {
		t.Fatal(err)
	}
	var following sync.WaitGroup
	following.Go(func() { _ = inv.Run(ctx) })
	defer following.Wait()
	defer cancel()
	vm := running(t)
	write := func(h cloud.Host) {
		t.Helper()
		host, err := inv.Hosts.PutOp(h.ID, h)
		if err != nil {
			t.Fatal(err)
		}
		machine, err := inv.VMs.PutOp(vm.ID, vm)
		if err != nil {
			t.Fatal(err)
		}
		revision, err := st.Txn(ctx, nil, []store.Op{host, machine})
		if err != nil {
			t.Fatal(err)
		}
		if err := inv.WaitFor(ctx, revision); err != nil {
			t.Fatal(err)
		}
	}
	c := NewController(inv, &Progress{}, Options{Log: log})
	lead, err := st.Campaign(ctx, "controller", "x")
	if err != nil {
		t.Fatal(err)
	}
	c.fence = lead.Fence()
	write(cloud.Host{ID: 7, Name: "h", State: cloud.HostStateError, Session: "it is back"})
	if err := c.giveUp(ctx, 7); !fault.Is(err, fault.WrongState) {
		t.Errorf("a host that is back: %v", err)
	}
	write(cloud.Host{ID: 7, Name: "h", State: cloud.HostStateError})
	a := newAbsences(0)
	a.watch(inv.AllHosts(), c.hasRunning)
	<-a.wake
	if due := a.take(); !slices.Equal(due, []int{7}) {
		t.Fatalf("due: %v", due)
	}
	if err := c.giveUp(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if now, _, err := inv.VMs.Get(ctx, vm.ID); err != nil || now.Phase() != cloud.Active(cloud.LCMUnknown) || now.Error != "host h is not connected" {
		t.Errorf("%v, %q, %v", now.Phase(), now.Error, err)
	}
}
