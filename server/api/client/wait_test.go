package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
	"hayloft/server/api/client/clienttest"
)

var (
	pending = cloud.At(cloud.StatePending)
	boot    = cloud.Active(cloud.LCMBoot)
	running = cloud.Active(cloud.LCMRunning)
	failure = cloud.Active(cloud.LCMBootFailure)
)

func wantRunning(vm api.VM) (bool, error) {
	if vm.LCM.Failure() {
		return false, fault.Errorf(fault.WrongState, "vm %d is %s", vm.ID, vm.StateName)
	}
	return vm.Phase() == running, nil
}

func TestWatch(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	s.Put(cloud.KindVM, machine(1, pending))
	s.Put(cloud.KindHost, api.Host{Host: cloud.Host{ID: 5}})
	var seen []string
	for event, err := range c.Watch(t.Context(), cloud.KindVM) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, fmt.Sprint(event.Kind, event.ID, event.Synced, event.Deleted))
		switch len(seen) {
		case 1:
			if vm, err := client.Object[api.VM](event); err != nil || vm.StateName != "PENDING" {
				t.Errorf("%+v, %v", vm, err)
			}
		case 2:
			s.Put(cloud.KindHost, api.Host{Host: cloud.Host{ID: 6}})
			s.Drop(cloud.KindVM, 1)
		}
		if event.Deleted {
			break
		}
	}
	if got := strings.Join(seen, ","); got != "vm1 false false,0 true false,vm1 false true" {
		t.Error(got)
	}
}

func TestWatchEnds(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for event, err := range c.Watch(ctx, cloud.KindVM) {
		if event.Synced {
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("canceled: %v", last)
	}
	for event, err := range c.Watch(t.Context(), cloud.KindVM) {
		if event.Synced {
			s.Stop()
		}
		last = err
	}
	if !fault.Is(last, fault.Unavailable) {
		t.Errorf("the server went away: %v", last)
	}
	s.Start()
}

func TestWaitVMs(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	for id := 1; id <= 3; id++ {
		s.Put(cloud.KindVM, machine(id, pending))
	}
	s.Put(cloud.KindVM, machine(4, running)) // nobody asks for it
	steps := []func(){
		func() { s.Put(cloud.KindVM, machine(2, boot)) },
		func() { s.Put(cloud.KindVM, machine(2, failure)) },
		func() { s.Put(cloud.KindVM, machine(1, running)) },
		func() { s.Put(cloud.KindVM, machine(3, running)) },
	}
	var shown []string
	vms, err := c.WaitVMs(t.Context(), []int{1, 2, 3}, wantRunning, func(vms []api.VM) {
		line := ""
		for _, vm := range vms {
			line += " " + vm.StateCode
		}
		shown = append(shown, strings.TrimSpace(line))
		if len(steps) > 0 {
			steps[0]()
			steps = steps[1:]
		}
	})
	if !fault.Is(err, fault.WrongState) || err.Error() != "vm 2 is BOOT_FAILURE" {
		t.Errorf("%v", err)
	}
	want := "pend pend pend|pend boot pend|pend fail pend|runn fail pend|runn fail runn"
	if got := strings.Join(shown, "|"); got != want {
		t.Errorf("shown %s\nwant  %s", got, want)
	}
	if len(vms) != 3 || vms[2].StateName != "RUNNING" {
		t.Errorf("%+v", vms)
	}
}

func TestWaitForWhatIsGone(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	s.Put(cloud.KindVM, machine(1, running))
	done := func(vm api.VM) (bool, error) { return vm.State == cloud.StateDone, nil }
	vms, err := c.WaitVMs(t.Context(), []int{1}, done, func(vms []api.VM) {
		if vms[0].State != cloud.StateDone {
			s.Drop(cloud.KindVM, 1)
		}
	})
	if err != nil || vms[0].StateCode != "done" || vms[0].Name != "vm-1" {
		t.Errorf("%+v, %v", vms, err)
	}
	if _, err := c.WaitVMs(t.Context(), []int{1, 8}, done, nil); !fault.Is(err, fault.NotFound) ||
		err.Error() != "vm 1 does not exist\nvm 8 does not exist" {
		t.Errorf("%v", err)
	}
}

// A server that is killed and started again must not end a wait.
func TestWaitOverRestart(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	s.Put(cloud.KindVM, machine(1, boot))
	down := false
	vms, err := c.WaitVMs(t.Context(), []int{1}, wantRunning, func([]api.VM) {
		if !down {
			down = true
			s.Stop()
			s.Put(cloud.KindVM, machine(1, running))
			s.Start()
		}
	})
	if err != nil || vms[0].StateName != "RUNNING" {
		t.Errorf("%+v, %v", vms, err)
	}
}

func TestWaitCanceled(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	s.Put(cloud.KindVM, machine(1, boot))
	ctx, cancel := context.WithCancel(t.Context())
	vms, err := c.WaitVMs(ctx, []int{1}, wantRunning, func([]api.VM) { cancel() })
	if !errors.Is(err, context.Canceled) || vms[0].StateName != "BOOT" {
		t.Errorf("%+v, %v", vms, err)
	}
}

func TestWaitImage(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	image := func(state cloud.ImageState) api.Image {
		return api.Image{Image: cloud.Image{ID: 2, Name: "tiny", State: state}, StateName: state.String()}
	}
	s.Put(cloud.KindImage, image(cloud.ImageStateLocked))
	got, err := c.WaitImage(t.Context(), 2, func(i api.Image, gone bool) (bool, error) {
		if i.State == cloud.ImageStateLocked {
			s.Put(cloud.KindImage, image(cloud.ImageStateReady))
		}
		return i.State == cloud.ImageStateReady, nil
	})
	if err != nil || got.Name != "tiny" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = c.WaitImage(t.Context(), 2, func(i api.Image, gone bool) (bool, error) {
		if !gone {
			s.Drop(cloud.KindImage, 2)
		}
		return gone, nil
	})
	if err != nil {
		t.Errorf("deleted: %v", err)
	}
}
