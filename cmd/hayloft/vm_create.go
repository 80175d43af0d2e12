package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// What a machine gets that is made from flags alone.
const (
	defaultCPU      = "1"
	defaultMemoryMB = 256
)

// machineFlags are attributes of a machine as flags.
type machineFlags struct {
	app                              *app
	images, networks, keys, contexts []string
	memory, hypervisor, requirements string
	cpu                              float64
	vcpu                             int
}

func (f *machineFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.images, "image", nil, "disk from this image, id or name (repeatable; replaces the template's disks)")
	flags.StringArrayVar(&f.networks, "network", nil, "card in this network, id or name (repeatable; replaces the template's)")
	flags.Float64Var(&f.cpu, "cpu", 0, "share of host cores, such as 0.5")
	flags.IntVar(&f.vcpu, "vcpu", 0, "cores that the machine sees")
	flags.StringVar(&f.memory, "memory", "", "MB, or with M or G")
	flags.StringArrayVar(&f.keys, "ssh-key", nil, "file with public keys that may log in (repeatable)")
	flags.StringArrayVar(&f.contexts, "context", nil, "variable for the machine, NAME=value (repeatable)")
	flags.StringVar(&f.hypervisor, "hypervisor", "", "qemu, lxc or dummy (default: by the image)")
	flags.StringVar(&f.requirements, "requirements", "", "SCHED_REQUIREMENTS, such as 'HYPERVISOR=\"lxc\"'")
	must(cmd.MarkFlagFilename("ssh-key"))
	f.app.completeFlag(cmd, "image", cloud.KindImage)
	f.app.completeFlag(cmd, "network", cloud.KindNetwork)
	completeWords(cmd, "hypervisor", "qemu", "lxc", "dummy")
}

// needsContext says that the flags add to CONTEXT, which a merge would replace.
func (f *machineFlags) needsContext() bool {
	return len(f.keys)+len(f.contexts)+len(f.networks) > 0
}

// apply puts the flags over a template. With defaults, a size and context are given to what has none.
func (f *machineFlags) apply(t *template.Template, defaults bool) error {
	for _, part := range []struct {
		attribute, key string
		refs           []string
	}{{"DISK", "IMAGE", f.images}, {"NIC", "NETWORK", f.networks}} {
		var all []template.Vector
		for _, ref := range part.refs {
			all = append(all, template.Vector{reference(part.key, ref)})
		}
		if len(all) > 0 {
			t.SetAll(part.attribute, all)
		}
	}
	if f.cpu != 0 {
		t.Set("CPU", numberText(f.cpu))
	}
	if f.vcpu != 0 {
		t.Set("VCPU", strconv.Itoa(f.vcpu))
	}
	if f.memory != "" {
		mb, err := megabytes(f.memory)
		if err != nil {
			return fault.Errorf(fault.Invalid, "--memory: %w", err)
		}
		t.Set("MEMORY", strconv.Itoa(mb))
	}
	if defaults {
		if !t.Has("CPU") {
			t.Set("CPU", defaultCPU)
		}
		if !t.Has("MEMORY") {
			t.Set("MEMORY", strconv.Itoa(defaultMemoryMB))
		}
	}
	setText(t, "HYPERVISOR", f.hypervisor, "SCHED_REQUIREMENTS", f.requirements)
	if f.needsContext() {
		return f.context(t)
	}
	return nil
}

// context adds keys and variables to CONTEXT.
func (f *machineFlags) context(t *template.Template) error {
	old, _ := t.GetVector("CONTEXT")
	vector := append(template.Vector{}, old...)
	keys, err := sshKeys(f.keys)
	if err != nil {
		return err
	}
	if keys != "" {
		if have, _ := vector.Get("SSH_PUBLIC_KEY"); have != "" && !strings.Contains(have, "$") {
			keys = have + "\n" + keys
		}
		vector.Set("SSH_PUBLIC_KEY", keys)
	}
	if _, ok := vector.Get("NETWORK"); !ok && t.Has("NIC") {
		vector.Set("NETWORK", "YES")
	}
	for _, text := range f.contexts {
		name, value, ok := strings.Cut(text, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return fault.Errorf(fault.Invalid, "--context %q: want NAME=value", text)
		}
		vector.Set(name, value)
	}
	if len(vector) > 0 {
		t.SetVector("CONTEXT", vector)
	}
	return nil
}

// createFlags are the flags of `hayloft vm create`.
type createFlags struct {
	input
	machineFlags
	count   int
	hold    bool
	wait    string
	timeout time.Duration
}

func newVMCreateCommand(a *app) *cobra.Command {
	f := createFlags{input: input{app: a}, machineFlags: machineFlags{app: a}}
	cmd := one("create [TEMPLATE]", "Make machines from a template, from a file, or from flags",
		`hayloft vm create web --name 'web-%i' --count 20 --wait=ssh
  hayloft vm create --name one --image tiny --network lan --memory 128 --ssh-key ~/.ssh/id_ed25519.pub
  hayloft vm create --file web.tmpl --hold
  hayloft vm create web --set 'SCHED_REQUIREMENTS = "CLUSTER_ID = 100"' --cpu 2`, nil)
	cmd.Long = `Make machines from a registered template, from a file, or from flags; a file goes over the
template, and flags over both. All machines are made or none.

"%i" in the name becomes 0, 1, 2... Made from flags alone, a machine has CPU 1 and 256 MB unless told.`
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		goal, err := f.goal()
		if err != nil {
			return err
		}
		request, err := f.request(ctx, cmd, c, args)
		if err != nil {
			return err
		}
		ids, err := c.CreateVMs(ctx, request)
		if err != nil {
			return err
		}
		if err := a.created(cloud.KindVM, ids...); err != nil || goal == nil {
			return err
		}
		return a.await(ctx, c, ids, *goal, f.timeout)
	})
	f.input.register(cmd)
	f.machineFlags.register(cmd)
	flags := cmd.Flags()
	flags.IntVarP(&f.count, "count", "n", 1, "how many")
	flags.BoolVar(&f.hold, "hold", false, "do not place them before they are released")
	flags.StringVar(&f.wait, "wait", "", "wait until they are running, or answer ssh")
	flags.Lookup("wait").NoOptDefVal = "running"
	flags.DurationVar(&f.timeout, "timeout", 0, "give up waiting after this, such as 5m (0: never)")
	completeWords(cmd, "wait", "running", "ssh")
	cmd.ValidArgsFunction = a.complete(cloud.KindTemplate, false)
	return cmd
}

func (f *createFlags) goal() (*goal, error) {
	switch f.wait {
	case "":
		return nil, nil
	case "running", "ssh":
	default:
		return nil, fault.Errorf(fault.Invalid, "--wait %q is neither running nor ssh", f.wait)
	}
	g, err := goalOf(f.wait)
	g.strict = true
	if f.hold {
		return nil, fault.Errorf(fault.Invalid, "--wait and --hold: a held machine is not placed")
	}
	return &g, err
}

func (f *createFlags) request(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) (api.CreateVMs, error) {
	request := api.CreateVMs{Name: f.name, Count: f.count, Hold: f.hold}
	if f.count < 1 {
		return request, fault.Errorf(fault.Invalid, "--count %d: want 1 or more", f.count)
	}
	alone := len(args) == 0 && f.file == ""
	if alone && len(f.images)+len(f.set) == 0 {
		return request, usageError(cmd, "nothing to make a machine from: give a TEMPLATE, --file or --image")
	}
	t, err := f.begin()
	if err != nil {
		return request, err
	}
	if len(args) > 0 {
		request.Template = args[0]
		if f.needsContext() && !t.Has("CONTEXT") {
			registered, err := c.Template(ctx, args[0])
			if err != nil {
				return request, err
			}
			if vector, ok := registered.Template.GetVector("CONTEXT"); ok {
				t.SetVector("CONTEXT", vector)
			}
		}
	}
	if err := f.apply(&t, alone); err != nil {
		return request, err
	}
	// The name goes beside the text, where "%i" works.
	if name, ok := t.Get("NAME"); ok && request.Name == "" && len(args) == 0 {
		request.Name = name
	}
	if err := merge(&t, f.set); err != nil {
		return request, err
	}
	request.Text = t.String()
	return request, nil
}
