package qemu

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"hayloft/hypervisor"
)

// nicModels maps what templates say to QEMU's models.
var nicModels = map[string]string{
	"": "virtio-net", "virtio": "virtio-net", "virtio-net": "virtio-net", "virtio-net-pci": "virtio-net",
	"e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139", "vmxnet3": "vmxnet3", "ne2k_pci": "ne2k_pci", "pcnet": "pcnet",
}

func (l *line) nics() error {
	for _, name := range l.m.Boot.Order {
		if !l.hasDevice(name) {
			return invalid("boot order: %q is not a disk or NIC of the machine", name)
		}
	}
	vhostFD := firstFD + len(l.m.NICs)
	for i, n := range l.m.NICs {
		model, ok := nicModels[strings.ToLower(n.Model)]
		virtio := model == "virtio-net"
		switch {
		case !ok:
			return invalid("nic %d: model %q is unknown", n.ID, n.Model)
		case l.microvm() && !virtio:
			return invalid("nic %d: model %s: chipset microvm has virtio only", n.ID, n.Model)
		case n.Tap == nil:
			return invalid("nic %d: no tap given", n.ID)
		}
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 {
			return invalid("nic %d: MAC address %q is not one", n.ID, n.MAC)
		}
		id := fmt.Sprintf("nic%d", n.ID)
		netdev := fmt.Sprintf("tap,id=%s-net,fd=%d", id, firstFD+i)
		l.taps = append(l.taps, i)
		if virtio && l.s.vhost {
			netdev += fmt.Sprintf(",vhost=on,vhostfd=%d", vhostFD)
			vhostFD++
			l.vhost++
		}
		l.add("-netdev", netdev)
		p := properties{"id": id, "netdev": id + "-net", "mac": n.MAC}
		if virtio && n.MTU > 0 {
			p["host_mtu"] = n.MTU
		}
		if index := l.bootIndex(id); index > 0 && slices.Contains(l.m.Boot.Order, id) {
			p["bootindex"] = index
		} else if !l.microvm() {
			p["romfile"] = "" // no network boot: saves its time and memory
		}
		l.device(model, p)
	}
	return nil
}

func (l *line) hasDevice(name string) bool {
	return slices.ContainsFunc(l.m.NICs, func(n hypervisor.NIC) bool { return name == fmt.Sprintf("nic%d", n.ID) }) ||
		slices.ContainsFunc(l.m.Disks, func(d hypervisor.Disk) bool { return name == fmt.Sprintf("disk%d", d.ID) })
}
