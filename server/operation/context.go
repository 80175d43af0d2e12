package operation

import (
	"maps"
	"strconv"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/image/contextdisk"
)

// context makes the variables of a machine's context disk. Only a template with CONTEXT gets one.
func (o *Operations) context(t template.Template, vm *cloud.VM, leases *leaser) error {
	v, ok := t.GetVector("CONTEXT")
	if !ok {
		return nil
	}
	own := singles(t)
	maps.DeleteFunc(own, func(name, _ string) bool { return name == "NAME" })
	in := contextdisk.Input{VMID: vm.ID, Name: vm.Name, UNAME: "oneadmin", GNAME: "oneadmin", Context: attributes(v), Template: own}
	for _, name := range []string{"FILES_DS", "TARGET"} {
		delete(in.Context, name)
	}
	for _, n := range vm.NICs {
		s, err := leases.state(n.NetworkID)
		if err != nil {
			return err
		}
		nic := contextdisk.NIC{ID: n.ID, Network: singles(s.network.Template), Attributes: map[string]string{
			"MAC": n.MAC, "IP": n.IP, "IP6": n.IP6, "NETWORK": n.Network, "NETWORK_ID": strconv.Itoa(n.NetworkID), "NIC_ID": strconv.Itoa(n.ID)}}
		for _, ar := range s.network.Ranges {
			if ar.ID == n.Range {
				nic.AR = ar.Attributes
			}
		}
		in.NICs = append(in.NICs, nic)
	}
	vm.Context = contextdisk.Variables(in)
	vm.Context["DISK_ID"] = strconv.Itoa(len(vm.Disks))
	if vm.Hypervisor == "qemu" {
		if err := contextTarget(vm); err != nil {
			return err
		}
		vm.Context["TARGET"] = vm.ContextDev
	}
	_, err := contextdisk.Render(vm.Context)
	return err
}

// contextTarget finds a place for the context disk behind the others.
func contextTarget(vm *cloud.VM) error {
	taken := map[string]bool{}
	for _, d := range vm.Disks {
		taken[d.Target] = true
	}
	switch {
	case vm.ContextDev == "":
		vm.ContextDev = nextTarget(defaultPrefix, taken)
	case taken[vm.ContextDev]:
		return fault.Errorf(fault.Invalid, "CONTEXT/TARGET %s is taken by a disk", vm.ContextDev)
	}
	return nil
}
