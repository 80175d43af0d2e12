package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// vmAction is a command that asks for one of the actions of the interface.
type vmAction struct {
	name, short, example string
	hard                 string // what --hard does; "": there is no such flag
	wait                 string // goal of --wait; "": there is nothing to wait for
}

func vmActions() []vmAction {
	return []vmAction{
		{"hold", "Keep waiting machines from being placed", "hayloft vm hold 3..7", "", "hold"},
		{"release", "Let held machines be placed", "hayloft vm release 3..7 --wait", "", "running"},
		{"poweroff", "Shut machines down; they keep their disks and their host", "hayloft vm poweroff web-1 --wait", "cut the power, without asking the guest", "poweroff"},
		{"resume", "Start machines that are off, suspended, stopped or undeployed", "hayloft vm resume web-1 --wait", "", "running"},
		{"suspend", "Save machines with their memory on their host; what CACHE_MODE BACK has not drained stays there too", "hayloft vm suspend web-1", "", "suspended"},
		{"stop", "Save machines with their memory and leave their hosts", "hayloft vm stop web-1 web-2", "", "stopped"},
		{"undeploy", "Shut machines down and leave their hosts", "hayloft vm undeploy web-1", "cut the power, without asking the guest", "undeployed"},
		{"reboot", "Boot running machines again", "hayloft vm reboot web-1", "reset, without asking the guest", ""},
		{"terminate", "Shut machines down and delete them", "hayloft vm terminate 3..40 --hard --wait", "delete them at once, in whatever state they are", "done"},
	}
}

func newVMActionCommands(a *app) []*cobra.Command {
	var commands []*cobra.Command
	for _, act := range vmActions() {
		commands = append(commands, newVMActionCommand(a, act))
	}
	return commands
}

func newVMActionCommand(a *app, act vmAction) *cobra.Command {
	hard := false
	w := waitFlags{goal: act.wait}
	cmd := one(act.name+" VM...", act.short, act.example, a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		name := act.name
		if hard {
			name += "-hard"
		}
		return a.onMachines(ctx, c, args, &w, func(id int) error { return c.Act(ctx, id, name) })
	}))
	if act.hard != "" {
		cmd.Flags().BoolVar(&hard, "hard", false, act.hard)
	}
	if act.wait != "" {
		w.register(cmd)
	}
	if act.name == "terminate" {
		cmd.Aliases = []string{"delete", "rm"}
	}
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, true)
	return cmd
}

// waitFlags are --wait and --timeout of an action.
type waitFlags struct {
	goal    string // "" after registering: whatever rest they come to
	failure bool   // a failed state will do too
	wait    bool
	timeout time.Duration
}

func (w *waitFlags) register(cmd *cobra.Command) {
	until := w.goal
	if until == "" {
		until = "at rest"
	}
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait until they are "+until)
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "give up waiting after this, such as 5m (0: never)")
}

func (w *waitFlags) target() (goal, error) {
	if w.goal == "" {
		return goal{name: "at rest", rest: true, failure: w.failure}, nil
	}
	g, err := goalOf(w.goal)
	g.strict = true
	return g, err
}

// onMachines does something to each machine, and waits for those where it could be done.
func (a *app) onMachines(ctx context.Context, c *client.Client, args []string, w *waitFlags, do func(id int) error) error {
	ids, err := machines(ctx, c, args)
	if err != nil {
		return err
	}
	var begun []int
	failed := forEach(ids, func(id int) error {
		err := do(id)
		if err == nil {
			begun = append(begun, id)
		}
		return err
	})
	if !w.wait || len(begun) == 0 || ctx.Err() != nil {
		return failed
	}
	g, err := w.target()
	if err != nil {
		return err
	}
	if err := a.await(ctx, c, begun, g, w.timeout); err != nil {
		if failed == nil {
			return err
		}
		return together([]error{failed, err})
	}
	return failed
}

func newVMDeployCommand(a *app) *cobra.Command {
	enforce := false
	w := waitFlags{goal: "running"}
	cmd := one("deploy VM HOST", "Put a waiting machine on a host", "hayloft vm deploy web-1 node-2 --wait",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			return a.onMachines(ctx, c, args[:1], &w, func(id int) error { return c.Deploy(ctx, id, args[1], enforce) })
		}))
	cmd.Flags().BoolVar(&enforce, "enforce", false, "only if it fits there")
	w.register(cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return a.complete(cloud.KindHost, true)(cmd, args, text)
		}
		return a.complete(cloud.KindVM, false)(cmd, args, text)
	}
	return cmd
}

func newVMRecoverCommand(a *app) *cobra.Command {
	operations := []struct{ name, usage, goal string }{
		{"retry", "do the failed step again", ""},
		{"failure", "take the step under way as failed", ""},
		{"success", "take the step under way as done", ""},
		{"delete", "delete the machine", "done"},
		{"recreate", "delete what it has on its host, and place it anew", "running"},
		{"delete-db", "forget the machine and leave what it has on its host", "done"},
	}
	chosen := make([]bool, len(operations))
	var w waitFlags
	cmd := one("recover VM...", "Decide about machines whose step hangs or has failed", "hayloft vm recover web-1 --retry --wait\n  hayloft vm recover 3..7 --delete", nil)
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		operation := ""
		for i, yes := range chosen {
			if yes {
				operation, w.goal, w.failure = operations[i].name, operations[i].goal, operations[i].name == "failure"
			}
		}
		return a.onMachines(ctx, c, args, &w, func(id int) error { return c.Recover(ctx, id, operation) })
	})
	var names []string
	for i, o := range operations {
		cmd.Flags().BoolVar(&chosen[i], o.name, false, o.usage)
		names = append(names, o.name)
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		n := 0
		for _, yes := range chosen {
			if yes {
				n++
			}
		}
		if n != 1 {
			return usageError(cmd, "give one of --%s", strings.Join(names, ", --"))
		}
		return positional(cmd, args)
	}
	w.register(cmd)
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, true)
	return cmd
}

func newVMResizeCommand(a *app) *cobra.Command {
	var w waitFlags
	var resize api.Resize
	memory := ""
	cmd := one("resize VM...", "Change what machines take", "hayloft vm resize web-1 --cpu 2 --vcpu 2 --memory 2G", nil)
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		if memory != "" {
			mb, err := megabytes(memory)
			if err != nil {
				return fault.Errorf(fault.Invalid, "--memory: %w", err)
			}
			resize.MemoryMB = mb
		}
		if resize == (api.Resize{}) {
			return usageError(cmd, "nothing to change: give --cpu, --vcpu or --memory")
		}
		return a.onMachines(ctx, c, args, &w, func(id int) error { return c.Resize(ctx, id, resize) })
	})
	cmd.Flags().Float64Var(&resize.CPU, "cpu", 0, "share of host cores")
	cmd.Flags().IntVar(&resize.VCPU, "vcpu", 0, "cores that the machine sees")
	cmd.Flags().StringVar(&memory, "memory", "", "MB, or with M or G")
	w.register(cmd)
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, true)
	return cmd
}

func newVMSaveAsCommand(a *app) *cobra.Command {
	wait, whenDone, cancel := false, false, false
	cmd := one("disk-saveas VM DISK [NAME]", "Save a machine's disk as a new image",
		"hayloft vm disk-saveas web-1 0 web-with-data --wait\n  hayloft vm disk-saveas job-7 1 results --when-done", nil)
	cmd.Long = `Save a machine's disk as a new image.

Only what the machine changed is moved where the image's datastore can clone. With --when-done it is saved when the machine
is terminated, before its disks go (SAVE_AS in the template's DISK says the same); if that fails, the disks stay and the
machine is EPILOG_FAILURE: vm recover --retry saves again, vm recover --success gives the save up.`
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		switch {
		case cancel == (len(args) == 3):
			return usageError(cmd, "want NAME, or --cancel")
		case wait && (whenDone || cancel):
			return usageError(cmd, "there is nothing to wait for")
		}
		id, err := machine(ctx, c, args[0])
		if err != nil {
			return err
		}
		disk, err := strconv.Atoi(args[1])
		if err != nil || disk < 0 {
			return fault.Errorf(fault.Invalid, "disk %q: want its id, as vm show tells it", args[1])
		}
		switch {
		case cancel:
			return c.SaveWhenDone(ctx, id, disk, "")
		case whenDone:
			return c.SaveWhenDone(ctx, id, disk, args[2])
		}
		image, err := c.SaveAs(ctx, id, disk, args[2])
		if err != nil {
			return err
		}
		if err := a.created(cloud.KindImage, image); err != nil || !wait {
			return err
		}
		return a.waitImage(ctx, c, image)
	})
	flags := cmd.Flags()
	flags.BoolVar(&wait, "wait", false, "wait until the image is ready")
	flags.BoolVar(&whenDone, "when-done", false, "when the machine is terminated, before its disks go")
	flags.BoolVar(&cancel, "cancel", false, "not when the machine is terminated, after all")
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}
