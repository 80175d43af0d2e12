package operation

import (
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/expression"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
)

// kept are the attributes that OpenNebula keeps in a machine's TEMPLATE; all others are its user's own.
var kept = []string{"CONTEXT", "CPU", "CPU_COST", "DISK", "DISK_COST", "FEATURES", "GRAPHICS", "INPUT", "MEMORY", "MEMORY_COST",
	"NIC", "NIC_ALIAS", "NIC_DEFAULT", "OS", "RAW", "SUBMIT_ON_HOLD", "TOPOLOGY", "VCPU", "VIDEO"}

// refused are attributes that mean something in OpenNebula which is not there yet: better to say so than
// to make a machine that lacks it.
var refused = []string{"PCI", "VMGROUP", "NIC_ALIAS", "TOPOLOGY"}

// prototype reads a VM template into a machine without identity: no id, leases or host.
func (o *Operations) prototype(t template.Template) (cloud.VM, error) {
	vm := cloud.VM{TemplateID: -1, HostID: -1, VCPU: 1}
	for _, name := range refused {
		if t.Has(name) {
			return vm, fault.Errorf(fault.Unsupported, "%s is not supported", name)
		}
	}
	for _, a := range t.Attributes {
		if slices.Contains(kept, a.Name) {
			vm.Template.Attributes = append(vm.Template.Attributes, a)
		} else if a.Name != "NAME" {
			vm.UserTemplate.Attributes = append(vm.UserTemplate.Attributes, a)
		}
	}
	for _, read := range []func(template.Template, *cloud.VM) error{
		o.size, o.hypervisor, o.disks, o.boot, o.graphics, o.rawAndSimulated, o.scheduling, o.contextFiles,
	} {
		if err := read(t, &vm); err != nil {
			return vm, err
		}
	}
	return vm, nil
}

func (o *Operations) size(t template.Template, vm *cloud.VM) error {
	cpu, ok, err := t.Float("CPU")
	switch {
	case err != nil:
		return err
	case !ok:
		return fault.Errorf(fault.Invalid, "template has no CPU")
	case cpu <= 0 || cpu > 4096:
		return fault.Errorf(fault.Invalid, "CPU is %v; it must be more than 0", cpu)
	}
	memory, ok, err := t.Int("MEMORY")
	switch {
	case err != nil:
		return err
	case !ok:
		return fault.Errorf(fault.Invalid, "template has no MEMORY")
	case memory <= 0 || memory > 1<<30:
		return fault.Errorf(fault.Invalid, "MEMORY is %d MB; it must be more than 0", memory)
	}
	vcpu, ok, err := t.Int("VCPU")
	switch {
	case err != nil:
		return err
	case ok && (vcpu <= 0 || vcpu > 4096):
		return fault.Errorf(fault.Invalid, "VCPU is %d; it must be at least 1", vcpu)
	case ok:
		vm.VCPU = vcpu
	}
	vm.CPU, vm.MemoryMB = cpu, memory
	return nil
}

func (o *Operations) hypervisor(t template.Template, vm *cloud.VM) error {
	text, ok := t.Get("HYPERVISOR")
	switch h := strings.ToLower(text); {
	case !ok || h == "":
		return nil // found out from the disks
	case h == "qemu" || h == "kvm":
		vm.Hypervisor = "qemu"
	case h == "lxc" || h == "dummy":
		vm.Hypervisor = h
	default:
		return fault.Errorf(fault.Unsupported, "HYPERVISOR %q is not supported; qemu (kvm), lxc and dummy are", text)
	}
	return nil
}

func (o *Operations) boot(t template.Template, vm *cloud.VM) error {
	v, ok := t.GetVector("OS")
	if !ok {
		return nil
	}
	var err error
	if arch, ok := v.Get("ARCH"); ok && arch != "x86_64" && arch != "" {
		return fault.Errorf(fault.Unsupported, "OS/ARCH %q is not supported; x86_64 is", arch)
	}
	vm.OS.Machine, _ = v.Get("MACHINE")
	vm.OS.Firmware, _ = v.Get("FIRMWARE")
	vm.OS.Command, _ = v.Get("KERNEL_CMD")
	if root, ok := v.Get("ROOT"); ok && root != "" {
		vm.OS.Command = strings.TrimSpace("root=/dev/" + strings.TrimPrefix(root, "/dev/") + " " + vm.OS.Command)
	}
	if order, ok := v.Get("BOOT"); ok && order != "" {
		vm.OS.Boot = strings.Split(strings.ReplaceAll(order, " ", ""), ",")
	}
	if vm.OS.Kernel, err = o.file(v, "KERNEL", cloud.ImageTypeKernel); err != nil {
		return err
	}
	if vm.OS.Initrd, err = o.file(v, "INITRD", cloud.ImageTypeRamdisk); err != nil {
		return err
	}
	if vm.OS.Machine == "microvm" && vm.OS.Kernel == nil {
		return fault.Errorf(fault.Invalid, "OS/MACHINE microvm needs OS/KERNEL: it cannot boot from a disk")
	}
	return nil
}

// file resolves OS/KERNEL (an image's name) or OS/KERNEL_DS ("$FILE[IMAGE_ID=n]" or IMAGE="name").
func (o *Operations) file(v template.Vector, key string, want cloud.ImageType) (*cloud.FileImage, error) {
	text, ok := v.Get(key + "_DS")
	if ok && text != "" {
		refs, err := fileReferences(text)
		if err != nil || len(refs) != 1 {
			return nil, fault.Errorf(fault.Invalid, "OS/%s_DS %q: want $FILE[IMAGE_ID=number]", key, text)
		}
		return o.fileImage("OS/"+key+"_DS", refs[0], want)
	}
	if text, ok = v.Get(key); !ok || text == "" {
		return nil, nil
	}
	return o.fileImage("OS/"+key, reference{name: text}, want)
}

func (o *Operations) fileImage(where string, r reference, want cloud.ImageType) (*cloud.FileImage, error) {
	img, err := o.findImage(r)
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", where, err)
	}
	if img.Type != want {
		return nil, fault.Errorf(fault.Invalid, "%s: image %d (%s) is a %v, not a %v", where, img.ID, img.Name, img.Type, want)
	}
	return &cloud.FileImage{ImageID: img.ID, Name: img.Name, DatastoreID: img.DatastoreID, Source: img.Source, Digest: img.Digest,
		Size: img.ObjectSize}, nil
}

func (o *Operations) graphics(t template.Template, vm *cloud.VM) error {
	v, ok := t.GetVector("GRAPHICS")
	if !ok {
		return nil
	}
	kind, _ := v.Get("TYPE")
	if !strings.EqualFold(kind, "vnc") {
		return fault.Errorf(fault.Unsupported, "GRAPHICS/TYPE %q is not supported; vnc is", kind)
	}
	g := &cloud.Graphics{Type: "vnc", Listen: "127.0.0.1"}
	if listen, ok := v.Get("LISTEN"); ok && listen != "" {
		g.Listen = listen
	}
	var err error
	if g.Port, _, err = v.Int("PORT"); err != nil || g.Port != 0 && (g.Port < 5900 || g.Port > 65535) {
		return fault.Errorf(fault.Invalid, "GRAPHICS/PORT: want 5900 to 65535")
	}
	g.Password, _ = v.Get("PASSWD")
	if random, _, _ := v.Bool("RANDOM_PASSWD"); random {
		g.Password = randomText(8)
	}
	vm.Graphics = g
	return nil
}

func (o *Operations) rawAndSimulated(t template.Template, vm *cloud.VM) error {
	for _, raw := range t.GetAll("RAW") {
		if _, ok := raw.Get("DATA"); ok {
			return fault.Errorf(fault.Unsupported, "RAW/DATA is for libvirt, which is not supported")
		}
	}
	if v, ok := t.GetVector("DUMMY"); ok {
		vm.Simulated = map[string]string{}
		for _, p := range v {
			vm.Simulated[p.Name] = p.Value
		}
	}
	return nil
}

func (o *Operations) scheduling(t template.Template, vm *cloud.VM) error {
	vm.Requirements, _ = t.Get("SCHED_REQUIREMENTS")
	vm.Rank, _ = t.Get("SCHED_RANK")
	if _, err := expression.ParseBool(vm.Requirements); err != nil {
		return fault.Errorf(fault.Invalid, "SCHED_REQUIREMENTS: %w", err)
	}
	if _, err := expression.ParseRank(vm.Rank); err != nil {
		return fault.Errorf(fault.Invalid, "SCHED_RANK: %w", err)
	}
	seconds, _, err := t.Int("SHUTDOWN_TIMEOUT")
	if err != nil || seconds < 0 {
		return fault.Errorf(fault.Invalid, "SHUTDOWN_TIMEOUT: want seconds")
	}
	wanted, _ := t.Get("SCHED_DS_REQUIREMENTS")
	if vm.System, err = o.systemDatastore(wanted); err != nil {
		return fault.Errorf(fault.ClassOf(err), "SCHED_DS_REQUIREMENTS: %w", err)
	}
	vm.Shutdown = seconds
	return nil
}

func (o *Operations) contextFiles(t template.Template, vm *cloud.VM) error {
	v, ok := t.GetVector("CONTEXT")
	if !ok {
		return nil
	}
	vm.ContextDev, _ = v.Get("TARGET")
	if files, ok := v.Get("FILES"); ok && files != "" {
		return fault.Errorf(fault.Unsupported, "CONTEXT/FILES is not supported; CONTEXT/FILES_DS is")
	}
	text, ok := v.Get("FILES_DS")
	if !ok || text == "" {
		return nil
	}
	refs, err := fileReferences(text)
	if err != nil {
		return fault.Errorf(fault.Invalid, "CONTEXT/FILES_DS %q: %w", text, err)
	}
	for _, r := range refs {
		f, err := o.fileImage("CONTEXT/FILES_DS", r, cloud.ImageTypeContext)
		if err != nil {
			return err
		}
		vm.ContextFiles = append(vm.ContextFiles, *f)
	}
	return nil
}
