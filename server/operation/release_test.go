package operation

import (
	"context"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
)

// marks is a repository of which only the marks are asked.
type marks struct {
	repository.Writable
	repository.Repository
	mark  *repository.Mark
	stale bool // the last Break accepted that
}

func (m *marks) Marked(context.Context, string) (repository.Mark, error) {
	if m.mark == nil {
		return repository.Mark{}, fault.Errorf(fault.NotFound, "nobody owns it")
	}
	return *m.mark, nil
}

func (m *marks) Break(_ context.Context, _ string, acceptStale bool) error {
	if m.mark.Undrained && !acceptStale {
		return fault.Errorf(fault.Busy, "undrained")
	}
	m.mark, m.stale = nil, acceptStale
	return nil
}

// releasing is a cloud with a persistent image that machine vm has in use on host 0, and its repository.
func releasing(t *testing.T) (o *Operations, m *marks, image int, vm cloud.VM) {
	o = cloudOf(t)
	m = &marks{}
	o.Open = func(disk.Repository) (repository.Repository, error) { return m, nil }
	image = ready(t, o, "NAME=mine\nPATH=/srv/mine.img\nPERSISTENT=YES", "raw", 1<<20)
	vm, err := oneVM(t, o, "IMAGE=mine, CACHE_MODE=BACK")
	check(t, err)
	check(t, o.Deploy(t.Context(), vm.ID, 0, false))
	m.mark = &repository.Mark{Owner: repository.Owner{Host: "node1", Machine: vm.ID}, Generation: 5, Undrained: true}
	return o, m, image, vm
}

func (o *Operations) setHost(t *testing.T, change func(*cloud.Host)) {
	t.Helper()
	_, revision, err := o.Inv.Hosts.Update(t.Context(), 0, func(h *cloud.Host) error { change(h); return nil })
	check(t, err)
	check(t, o.Inv.WaitFor(t.Context(), revision))
}

func wantRefusal(t *testing.T, err error, class fault.Class, words ...string) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Fatalf("%v (%v), want %v", err, fault.ClassOf(err), class)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v: nothing of %q", err, word)
		}
	}
}

func TestReleaseOfAnImageWhoseHostIsGone(t *testing.T) {
	o, m, image, vm := releasing(t)
	wantRefusal(t, o.ReleaseImage(t.Context(), image, true), fault.Busy, "in use by vm 0", "host node1", "PROLOG")
	o.setHost(t, func(h *cloud.Host) { h.Session = "" })
	wantRefusal(t, o.ReleaseImage(t.Context(), image, true), fault.Busy, "in use by vm 0") // it may be back in a moment
	o.setHost(t, func(h *cloud.Host) { h.State = cloud.HostStateError })
	wantRefusal(t, o.ReleaseImage(t.Context(), image, false), fault.Busy, "host node1", "machine 0", "generation 5", "--accept-stale")
	if m.mark == nil {
		t.Fatal("a refused release broke the mark")
	}
	check(t, o.ReleaseImage(t.Context(), image, true))
	if m.mark != nil || !m.stale {
		t.Errorf("after the release: mark %v", m.mark)
	}
	// Another machine can have it, and the end of the old one does not take it away again.
	next, err := oneVM(t, o, "IMAGE=mine")
	check(t, err)
	check(t, o.Recover(t.Context(), vm.ID, "delete-db"))
	o.finish(t, vm.ID)
	if users := o.ImageUsers(image); len(users) != 1 || users[0] != next.ID {
		t.Errorf("users after all: %v, want vm %d", users, next.ID)
	}
	if _, err := oneVM(t, o, "IMAGE=mine"); !fault.Is(err, fault.WrongState) {
		t.Errorf("a second user: %v", err)
	}
}

// finish settles a machine that is DONE, as its host's report would.
func (o *Operations) finish(t *testing.T, id int) {
	t.Helper()
	check(t, o.change(t.Context(), id, "settle", func(vm *cloud.VM) error {
		vm.HostID = -1
		return nil
	}))
}

func TestReleaseForAMachineThatWaits(t *testing.T) {
	o, m, image, _ := releasing(t)
	m.mark.Machine, m.mark.Host, m.mark.Undrained = 77, "node9", false // of a machine that nobody knows any more
	check(t, o.ReleaseImage(t.Context(), image, false))
	if m.mark != nil || m.stale {
		t.Errorf("after the release: mark %v, stale %t", m.mark, m.stale)
	}
	if users := o.ImageUsers(image); len(users) != 1 {
		t.Errorf("the machine that waits for the image lost it: users %v", users)
	}
	wantRefusal(t, o.ReleaseImage(t.Context(), image, false), fault.Busy, "held by vm 0")
}

func TestReleaseOfWhatNobodyOwns(t *testing.T) {
	o, m, image, vm := releasing(t)
	m.mark = nil
	check(t, o.Recover(t.Context(), vm.ID, "delete-db"))
	o.finish(t, vm.ID)
	wantRefusal(t, o.ReleaseImage(t.Context(), image, true), fault.NotFound, "nobody owns it")
	wantRefusal(t, o.ReleaseImage(t.Context(), 0, true), fault.Unsupported, "not persistent")
	wantRefusal(t, o.ReleaseImage(t.Context(), 99, true), fault.NotFound)
}

// A machine from which its image was taken never runs again: another one may write to the image.
func TestMachineWithoutItsImageIsNotStarted(t *testing.T) {
	o, _, image, vm := releasing(t)
	o.setHost(t, func(h *cloud.Host) { h.Session, h.State = "", cloud.HostStateError })
	check(t, o.ReleaseImage(t.Context(), image, true))
	_, revision, err := o.Inv.VMs.Update(t.Context(), vm.ID, func(vm *cloud.VM) error {
		vm.State, vm.LCM = cloud.StatePoweroff, 0
		return nil
	})
	check(t, err)
	check(t, o.Inv.WaitFor(t.Context(), revision))
	wantRefusal(t, o.Action(t.Context(), vm.ID, "resume"), fault.WrongState, "taken", "mine")
}
