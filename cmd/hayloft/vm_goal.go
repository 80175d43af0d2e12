package main

import (
	"fmt"
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// goal is what a command waits for.
type goal struct {
	name    string
	phase   cloud.Phase
	ssh     bool // and then for an SSH banner
	strict  bool // the machine is on its way: when it comes to rest elsewhere, it has failed
	rest    bool // any rest will do, instead of phase
	failure bool // and so will a failure
}

var goals = map[string]cloud.Phase{
	"running":    cloud.Active(cloud.LCMRunning),
	"ssh":        cloud.Active(cloud.LCMRunning),
	"unknown":    cloud.Active(cloud.LCMUnknown),
	"done":       cloud.At(cloud.StateDone),
	"poweroff":   cloud.At(cloud.StatePoweroff),
	"suspended":  cloud.At(cloud.StateSuspended),
	"stopped":    cloud.At(cloud.StateStopped),
	"undeployed": cloud.At(cloud.StateUndeployed),
	"hold":       cloud.At(cloud.StateHold),
	"pending":    cloud.At(cloud.StatePending),
}

func goalNames() []string {
	return []string{"running", "ssh", "done", "poweroff", "suspended", "stopped", "undeployed", "hold", "pending", "unknown"}
}

func goalOf(name string) (goal, error) {
	name = strings.ToLower(name)
	phase, ok := goals[name]
	if !ok {
		return goal{}, fault.Errorf(fault.Invalid, "waiting for %q: want one of %s", name, strings.Join(goalNames(), ", "))
	}
	return goal{name: name, phase: phase, ssh: name == "ssh"}, nil
}

// atRest says that a machine does not move on by itself. PENDING and UNKNOWN may.
func atRest(vm *api.VM) bool {
	if vm.State == cloud.StateActive {
		return vm.LCM == cloud.LCMRunning || vm.LCM.Failure()
	}
	return !slices.Contains([]cloud.State{cloud.StateInit, cloud.StatePending, cloud.StateCloning}, vm.State)
}

// reached says whether the machine is there, or why it never will be.
func (g goal) reached(vm api.VM) (bool, error) {
	failed := vm.LCM.Failure() || vm.State == cloud.StateCloningFailure
	switch {
	case g.rest && atRest(&vm) && (g.failure || !failed):
		return true, nil
	case !g.rest && vm.Phase() == g.phase:
		return true, nil
	case failed:
		return false, fault.Errorf(fault.WrongState, "vm %d (%s) is %s%s", vm.ID, vm.Name, vm.StateName, because(&vm))
	case vm.State == cloud.StateDone:
		return false, fault.Errorf(fault.WrongState, "vm %d (%s) is DONE%s", vm.ID, vm.Name, because(&vm))
	case g.strict && atRest(&vm):
		return false, fault.Errorf(fault.WrongState, "vm %d (%s) is %s, not %s%s", vm.ID, vm.Name, vm.StateName, g.phase, because(&vm))
	}
	return false, nil
}

func because(vm *api.VM) string {
	switch {
	case vm.Error != "":
		return ": " + vm.Error
	case vm.State == cloud.StatePending && vm.SchedMessage != "":
		return ": " + vm.SchedMessage
	}
	return ""
}

// steps of a deployment, in order.
const (
	stepWaiting = iota
	stepPlaced
	stepPrepared
	stepRunning
)

func stepOf(vm *api.VM) int {
	name := vm.StateName
	switch {
	case vm.State != cloud.StateActive:
		return stepWaiting
	case vm.LCM == cloud.LCMRunning:
		return stepRunning
	case strings.HasPrefix(name, "BOOT"):
		return stepPrepared
	}
	return stepPlaced
}

// countsText is "12 machines: 2 pending, 3 prolog, 7 running", in the order of a machine's life.
func countsText(all []api.VM) string {
	counts := map[string]int{}
	var order []*api.VM
	for i := range all {
		if counts[all[i].StateName]++; counts[all[i].StateName] == 1 {
			order = append(order, &all[i])
		}
	}
	slices.SortStableFunc(order, func(x, y *api.VM) int {
		if d := stepOf(x) - stepOf(y); d != 0 {
			return d
		}
		return strings.Compare(x.StateName, y.StateName)
	})
	var list []string
	for _, vm := range order {
		name := strings.ToLower(strings.ReplaceAll(vm.StateName, "_", " "))
		list = append(list, fmt.Sprintf("%d %s", counts[vm.StateName], name))
	}
	return plural(len(all), "machine") + ": " + strings.Join(list, ", ")
}
