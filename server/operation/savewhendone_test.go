package operation

import (
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/lifecycle"
)

// running puts a machine onto host 0, as if it ran there.
func running(t *testing.T, o *Operations, id int) {
	t.Helper()
	_, revision, err := o.Inv.VMs.Update(t.Context(), id, func(vm *cloud.VM) error {
		vm.State, vm.LCM, vm.HostID, vm.Orders.Goal = cloud.StateActive, cloud.LCMRunning, 0, lifecycle.GoalRunning
		return nil
	})
	check(t, err)
	check(t, o.Inv.WaitFor(t.Context(), revision))
}

func TestDiskIsSavedWhenItsMachineIsDone(t *testing.T) {
	o := cloudOf(t)
	vm, err := oneVM(t, o, "IMAGE=tiny, SAVE_AS=\"result-$VMID\"")
	check(t, err)
	running(t, o, vm.ID)
	check(t, o.Action(t.Context(), vm.ID, "terminate"))
	vm, err = o.Inv.VM(vm.ID)
	check(t, err)
	if vm.LCM != cloud.LCMShutdown || len(vm.Orders.Saves) != 1 || !vm.Orders.Saves[0].BeforeGone {
		t.Fatalf("%v, %+v", vm.Phase(), vm.Orders)
	}
	img := mustImage(t, o, vm.Orders.Saves[0].ImageID)
	if img.Name != "result-0" || img.State != cloud.ImageStateLocked || img.SavedFrom == nil || img.SavedFrom.VM != vm.ID {
		t.Errorf("image %+v", img)
	}
	a, err := lifecycle.Assignment(&vm, o.Inv)
	check(t, err)
	if len(a.Saves) != 1 || !a.Saves[0].BeforeGone || a.Saves[0].Name != img.Source {
		t.Errorf("the host is told %v", a.Saves)
	}
	check(t, o.Action(t.Context(), vm.ID, "terminate-hard"))
	if vm, err = o.Inv.VM(vm.ID); err != nil || len(vm.Orders.Saves) != 1 {
		t.Errorf("asked for again: %v, %v", vm.Orders.Saves, err)
	}
}

func TestSaveWhenDoneIsAskedForAndTakenBack(t *testing.T) {
	o := cloudOf(t)
	vm, err := oneVM(t, o, "IMAGE=tiny")
	check(t, err)
	running(t, o, vm.ID)
	check(t, o.SaveWhenDone(t.Context(), vm.ID, 0, "tiny"))
	if err := o.Action(t.Context(), vm.ID, "terminate"); !fault.Is(err, fault.Exists) || !strings.Contains(err.Error(), "save as tiny") {
		t.Errorf("as an image that is there: %v", err)
	}
	if vm, err = o.Inv.VM(vm.ID); err != nil || vm.LCM != cloud.LCMRunning {
		t.Errorf("after a refused termination: %v, %v", vm.Phase(), err)
	}
	check(t, o.SaveWhenDone(t.Context(), vm.ID, 0, ""))
	check(t, o.Action(t.Context(), vm.ID, "terminate"))
	if vm, err = o.Inv.VM(vm.ID); err != nil || len(vm.Orders.Saves) != 0 {
		t.Errorf("taken back: %v, %v", vm.Orders.Saves, err)
	}
	if err := o.SaveWhenDone(t.Context(), vm.ID, 9, "x"); err == nil {
		t.Error("a disk that it has not")
	}
	pending, err := oneVM(t, o, "IMAGE=tiny, SAVE_AS=never")
	check(t, err)
	check(t, o.Action(t.Context(), pending.ID, "terminate")) // it has no disks yet
	ready(t, o, "NAME=mine\nPATH=/srv/mine.img\nPERSISTENT=YES", "raw", 1<<20)
	for _, disk := range []string{"IMAGE=mine, SAVE_AS=x", "IMAGE=tiny, READONLY=YES, SAVE_AS=x"} {
		if _, err := oneVM(t, o, disk); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", disk, err)
		}
	}
}
