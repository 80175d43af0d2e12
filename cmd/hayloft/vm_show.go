package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud"
	"hayloft/server/api"
)

func showVM(p *page, a *app, vm *api.VM) {
	p.section(fmt.Sprintf("Virtual machine %d information", vm.ID))
	p.field("ID", vm.ID)
	p.field("NAME", vm.Name)
	draining := drainText(vm)
	if vm.State == cloud.StateActive {
		p.painted("STATE", vm.State, vmColor(vm))
		p.painted("LCM_STATE", vm.LCM.String()+draining, vmColor(vm))
	} else {
		p.painted("STATE", vm.State.String()+draining, vmColor(vm))
		p.painted("LCM_STATE", vm.LCM, vmColor(vm))
	}
	p.field("HOST", vm.HostName)
	p.field("HYPERVISOR", vm.Hypervisor)
	if vm.TemplateID >= 0 {
		p.field("TEMPLATE", vm.TemplateID)
	}
	p.field("START TIME", momentText(vm.STime))
	p.field("END TIME", momentText(vm.ETime))
	p.field("TIME", ageText(vmAge(a, vm)))
	p.painted("ERROR", vm.Error, red)
	p.painted("WARNING", vm.Warning, yellow)
	showRefusals(p, vm)
	showProgress(p, a, vm)

	p.section("Capacity")
	p.field("CPU", numberText(vm.CPU))
	p.field("VCPU", vm.VCPU)
	p.field("MEMORY", megabytesText(vm.MemoryMB))
	if vm.UsedCPU > 0 || vm.UsedBytes > 0 {
		p.field("CPU TIME USED", lapseText(time.Duration(vm.UsedCPU*float64(time.Second))))
		p.field("MEMORY USED", bytesText(vm.UsedBytes))
	}
	showTiming(p, &vm.Timing)
	showDisks(p, vm)
	showNICs(p, vm)
	showBoot(p, vm)
	showHistory(p, a, vm)
	if len(vm.Context) > 0 {
		p.section("Context")
		for _, name := range slices.Sorted(maps.Keys(vm.Context)) {
			p.field(name, vm.Context[name])
		}
	}
	p.template("User template", vm.UserTemplate)
	p.template("Virtual machine template", vm.Template)
}

// showRefusals tells for a machine that waits why each host refused it, a line each.
func showRefusals(p *page, vm *api.VM) {
	if vm.SchedMessage == "" || vm.State == cloud.StateActive || vm.State == cloud.StateDone {
		return
	}
	p.painted("WAITS BECAUSE", strings.ReplaceAll(vm.SchedMessage, "; ", "\n"), yellow)
}

func showProgress(p *page, a *app, vm *api.VM) {
	if vm.Step == "" && vm.Total == 0 || drains(vm) {
		return
	}
	text := vm.Step
	if vm.Total > 0 {
		text += fmt.Sprintf(", %s of %s (%d%%)", bytesText(vm.Done), bytesText(vm.Total), 100*vm.Done/vm.Total)
		if vm.Rate > 0 {
			text += fmt.Sprintf(", %s/s", bytesText(vm.Rate))
		} else if began := vm.Timing.PrologStart; began > 0 && vm.Done > 0 {
			if lapse := a.now().Sub(time.Unix(0, began)); lapse > time.Second {
				text += fmt.Sprintf(", %s/s", bytesText(int64(float64(vm.Done)/lapse.Seconds())))
			}
		}
	}
	p.field("PROGRESS", strings.TrimPrefix(text, ", "))
}

// showTiming tells how long each stage of the last deployment took.
func showTiming(p *page, t *cloud.Timing) {
	if t.Scheduled == 0 {
		return
	}
	p.section("Timing of the last deployment")
	stage := func(name string, from, to int64) {
		if from > 0 && to > 0 && to >= from {
			p.field(name, lapseText(time.Duration(to-from)))
		}
	}
	stage("SCHEDULING", t.Submitted, t.Scheduled)
	stage("PROLOG", t.PrologStart, t.PrologEnd)
	stage("BOOT", t.BootStart, t.BootEnd)
	stage("UNTIL RUNNING", t.Submitted, t.Running)
	if t.GivenBytes > 0 {
		p.field("READ", fmt.Sprintf("%s from repositories, of %s given", bytesText(t.ReadBytes), bytesText(t.GivenBytes)))
	}
}

func showDisks(p *page, vm *api.VM) {
	if len(vm.Disks) == 0 {
		return
	}
	p.section("Disks")
	columns := []column[cloud.Disk]{
		{title: "ID", right: true, cell: func(d *cloud.Disk) string { return strconv.Itoa(d.ID) }},
		{title: "TARGET", cell: func(d *cloud.Disk) string { return d.Target }},
		{title: "IMAGE", least: 10, cell: diskImage},
		{title: "SIZE", right: true, cell: func(d *cloud.Disk) string { return bytesText(d.Size) }},
		{title: "FORMAT", cell: func(d *cloud.Disk) string { return d.Format }},
		{title: "CACHE", cell: func(d *cloud.Disk) string { return cacheMode(vm, d) }},
	}
	if len(vm.Caches) > 0 {
		columns = append(columns,
			column[cloud.Disk]{title: "CACHED", right: true, cell: func(d *cloud.Disk) string { return cachedText(vm, d) }},
			column[cloud.Disk]{title: "UNDRAINED", right: true, cell: func(d *cloud.Disk) string { return undrainedText(vm, d) }})
	}
	rows(p, vm.Disks, append(columns, column[cloud.Disk]{title: "KIND", cell: diskKind})...)
	for _, d := range vm.Disks {
		if d.SaveAs != "" {
			p.field(fmt.Sprintf("DISK %d", d.ID), "is saved as "+d.SaveAs+" when the machine is terminated")
		}
	}
	for _, c := range vm.Caches {
		if c.Error != "" {
			p.painted(fmt.Sprintf("DISK %d CACHE", c.Disk), c.Error, red)
		}
	}
}

func diskImage(d *cloud.Disk) string {
	if d.ImageID < 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%d)", d.Image, d.ImageID)
}

func diskKind(d *cloud.Disk) string {
	switch {
	case d.ImageID < 0:
		return strings.TrimSpace("volatile " + d.FS)
	case d.CDROM:
		return "cdrom"
	case d.Persistent:
		return "persistent"
	case d.ReadOnly:
		return "read-only"
	}
	return "clone"
}

func showNICs(p *page, vm *api.VM) {
	if len(vm.NICs) == 0 {
		return
	}
	p.section("NICs")
	rows(p, vm.NICs,
		column[cloud.NIC]{title: "ID", right: true, cell: func(n *cloud.NIC) string { return strconv.Itoa(n.ID) }},
		column[cloud.NIC]{title: "NETWORK", least: 8, cell: func(n *cloud.NIC) string { return n.Network }},
		column[cloud.NIC]{title: "IP", cell: func(n *cloud.NIC) string { return n.IP }},
		column[cloud.NIC]{title: "IP6", cell: func(n *cloud.NIC) string { return n.IP6 }},
		column[cloud.NIC]{title: "MAC", cell: func(n *cloud.NIC) string { return n.MAC }},
		column[cloud.NIC]{title: "MODEL", cell: func(n *cloud.NIC) string { return n.Model }},
		column[cloud.NIC]{title: "FILTER", cell: func(n *cloud.NIC) string { return yesNo(n.Filter) }})
}

func showBoot(p *page, vm *api.VM) {
	if vm.OS.Kernel == nil && vm.OS.Machine == "" && len(vm.OS.Boot) == 0 && vm.Graphics == nil {
		return
	}
	p.section("Boot and screen")
	p.field("MACHINE", vm.OS.Machine)
	if vm.OS.Kernel != nil {
		p.field("KERNEL", vm.OS.Kernel.Name)
	}
	if vm.OS.Initrd != nil {
		p.field("INITRD", vm.OS.Initrd.Name)
	}
	p.field("KERNEL_CMD", vm.OS.Command)
	p.field("BOOT", strings.Join(vm.OS.Boot, ","))
	if g := vm.Graphics; g != nil {
		p.field("GRAPHICS", fmt.Sprintf("%s, port %d at %s", g.Type, g.Port, g.Listen))
	}
}

func showHistory(p *page, a *app, vm *api.VM) {
	if len(vm.History) == 0 {
		return
	}
	p.section("History")
	until := func(from, to int64) string {
		if from == 0 {
			return "-"
		}
		end := a.now()
		if to != 0 {
			end = time.Unix(to, 0)
		}
		return ageText(end.Sub(time.Unix(from, 0)))
	}
	rows(p, vm.History,
		column[cloud.History]{title: "SEQ", right: true, cell: func(h *cloud.History) string { return strconv.Itoa(h.Seq) }},
		column[cloud.History]{title: "HOST", least: 6, cell: func(h *cloud.History) string { return h.Hostname }},
		column[cloud.History]{title: "ACTION", cell: func(h *cloud.History) string { return h.Action }},
		column[cloud.History]{title: "START", cell: func(h *cloud.History) string { return momentText(h.STime) }},
		column[cloud.History]{title: "TIME", right: true, cell: func(h *cloud.History) string { return until(h.STime, h.ETime) }},
		column[cloud.History]{title: "RUNNING", right: true, cell: func(h *cloud.History) string { return until(h.RSTime, h.RETime) }})
}
