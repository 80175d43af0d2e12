package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

var vms = resource[api.VM]{
	kind: cloud.KindVM,
	key:  func(vm *api.VM) (int, string) { return vm.ID, vm.Name },
	columns: func(a *app) []column[api.VM] {
		return []column[api.VM]{
			{title: "ID", right: true, cell: func(vm *api.VM) string { return strconv.Itoa(vm.ID) }},
			{title: "NAME", least: 8, cell: func(vm *api.VM) string { return vm.Name }},
			{title: "STAT", cell: func(vm *api.VM) string { return vm.StateCode }, paint: vmColor},
			{title: "CPU", right: true, cell: func(vm *api.VM) string { return numberText(vm.CPU) }},
			{title: "MEM", right: true, cell: func(vm *api.VM) string { return megabytesText(vm.MemoryMB) }},
			{title: "HOST", least: 6, cell: func(vm *api.VM) string { return vm.HostName }},
			{title: "IP", least: 15, cell: vmAddresses},
			{title: "TIME", right: true, cell: func(vm *api.VM) string { return ageText(vmAge(a, vm)) }},
		}
	},
	show: showVM,
	list: func(ctx context.Context, c *client.Client) ([]api.VM, error) { return c.VMs(ctx, true) },
}

func vmColor(vm *api.VM) color {
	switch {
	case vm.LCM.Failure() || vm.State == cloud.StateCloningFailure || vm.LCM == cloud.LCMUnknown:
		return red
	case vm.Phase() == cloud.Active(cloud.LCMRunning):
		return green
	case vm.State == cloud.StateActive || vm.State == cloud.StatePending || vm.State == cloud.StateCloning:
		return yellow
	}
	return plain
}

func vmAddresses(vm *api.VM) string {
	var all []string
	for _, nic := range vm.NICs {
		for _, ip := range []string{nic.IP, nic.IP6} {
			if ip != "" {
				all = append(all, ip)
			}
		}
	}
	return strings.Join(all, ",")
}

func vmAge(a *app, vm *api.VM) time.Duration {
	end := a.now()
	if vm.ETime != 0 {
		end = time.Unix(vm.ETime, 0)
	}
	return end.Sub(time.Unix(vm.STime, 0))
}

func newVMCommand(a *app) *cobra.Command {
	cmd := group("vm", "Machines, virtual and containers",
		"  hayloft vm create web --count 20 --wait=ssh\n  hayloft vm list --watch\n  hayloft vm ssh web-3", "machine")
	cmd.AddCommand(newVMCreateCommand(a), newVMListCommand(a), vmShowCommand(a))
	cmd.AddCommand(newVMActionCommands(a)...)
	cmd.AddCommand(newVMDeployCommand(a), newVMRecoverCommand(a), newVMResizeCommand(a), newVMSaveAsCommand(a), newVMDiskCacheCommand(a),
		newVMConsoleCommand(a), newVMLogCommand(a), newVMSSHCommand(a), newVMTunnelCommand(a), newVMVNCCommand(a), newVMWaitCommand(a))
	return cmd
}

func vmShowCommand(a *app) *cobra.Command {
	cmd := one("show VM...", "Show all about machines, and for those that wait why each host refused them", "hayloft vm show web-3",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			ids, err := machines(ctx, c, args)
			if err != nil {
				return err
			}
			var items []api.VM
			for _, id := range ids {
				vm, err := c.VM(ctx, id)
				if err != nil {
					return err
				}
				items = append(items, vm)
			}
			return vms.present(a, items)
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, true)
	return cmd
}

func newVMListCommand(a *app) *cobra.Command {
	var states []string
	host, all := "", false
	cmd := vms.listCommand(a, "hayloft vm list --state running --host node-1\n  hayloft vm list --watch\n  hayloft vm list --state failure -o id",
		func(ctx context.Context, c *client.Client) (func(*api.VM) bool, error) {
			hostID := -1
			if host != "" {
				record, err := c.Host(ctx, host)
				if err != nil {
					return nil, err
				}
				hostID = record.ID
			}
			for _, state := range states {
				if !knownState(state) {
					return nil, fault.Errorf(fault.Invalid, "--state %q is no state of a machine, such as pending, running, runn, boot_failure or failure", state)
				}
			}
			return func(vm *api.VM) bool {
				return (all || vm.State != cloud.StateDone || asked(states, vm)) && (hostID < 0 || vm.HostID == hostID) &&
					(len(states) == 0 || asked(states, vm))
			}, nil
		})
	cmd.Flags().StringSliceVar(&states, "state", nil, "only in these states: full names, four letters, or failure for all failures (repeatable)")
	cmd.Flags().StringVar(&host, "host", "", "only on this host, id or name")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that are DONE too")
	a.completeFlag(cmd, "host", cloud.KindHost)
	completeWords(cmd, "state", "pending", "hold", "prolog", "boot", "running", "failure", "unknown", "poweroff", "suspended", "stopped", "undeployed", "done")
	return cmd
}

const anyFailure = "failure"

func asked(states []string, vm *api.VM) bool {
	return slices.ContainsFunc(states, func(state string) bool {
		return strings.EqualFold(state, vm.State.String()) || strings.EqualFold(state, vm.StateName) || strings.EqualFold(state, vm.StateCode) ||
			strings.EqualFold(state, anyFailure) && (vm.LCM.Failure() || vm.State == cloud.StateCloningFailure)
	})
}

func knownState(name string) bool {
	if strings.EqualFold(name, anyFailure) {
		return true
	}
	const beyond = 100
	for n := range beyond {
		state, lcm := cloud.State(n), cloud.LCMState(n)
		for _, known := range []string{state.String(), cloud.Short(state, 0), lcm.String(), cloud.Short(cloud.StateActive, lcm)} {
			if strings.EqualFold(known, name) && known != strconv.Itoa(n) {
				return true
			}
		}
	}
	return false
}
