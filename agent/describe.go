package agent

import (
	"fmt"
	"net/netip"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/network"
	"hayloft/wire"
)

// needs is what kind of host resources a hypervisor's machines take.
type needs struct {
	tree    bool         // disks are directory trees
	port    network.Kind // "": no ports
	context bool         // takes the context as a disk; otherwise as a directory when tree
	root    bool         // the driver maps users itself: no user of its own
}

func needsOf(name string) needs {
	switch name {
	case "lxc":
		return needs{tree: true, port: network.Veth, root: true}
	case "dummy":
		return needs{}
	}
	return needs{port: network.Tap, context: true}
}

func (p *pass) needs() needs { return needsOf(p.want.Machine.Hypervisor) }

func (p *pass) user() (uid, gid int) {
	if p.needs().root {
		return 0, 0
	}
	return p.cfg.UIDBase + p.id(), p.cfg.GID
}

func repository(r *wire.Repository) disk.Repository {
	return disk.Repository{ID: int(r.GetId()), Driver: r.GetDriver(), Path: r.GetPath(), Options: r.GetOptions()}
}

func describeImage(i *wire.Image) disk.Image {
	img := disk.Image{ID: int(i.Id), Name: i.Name, Repository: repository(i.Repository), Source: i.Source,
		Format: i.Format, Digest: i.Digest, Size: i.Size, Persistent: i.Persistent}
	if i.IndexRepository != nil {
		img.Index = &disk.Object{Repository: repository(i.IndexRepository), Name: i.IndexObject}
	}
	return img
}

func spec(d *wire.Disk, tree bool) disk.Spec {
	s := disk.Spec{ID: int(d.Id), Size: d.Size, ReadOnly: d.ReadOnly, Tree: tree, Volatile: d.VolatileType, FS: d.Fs, Mode: d.Mode,
		CacheSize: d.CacheSize, Preload: d.Preload, NoFill: d.NoFill, FillRate: d.FillRate}
	if d.Image != nil {
		i := describeImage(d.Image)
		s.Image = &i
	}
	return s
}

// request is all that the machine needs from the way of disks. Files are in the order kernel, ramdisk,
// images of the context.
func (p *pass) request() disk.Request {
	m := p.want.Machine
	r := disk.Request{Machine: p.id(), Dir: p.dir()}
	r.UID, r.GID = p.user()
	for _, d := range m.Disks {
		r.Disks = append(r.Disks, spec(d, p.needs().tree))
	}
	for _, file := range []*wire.Image{m.Boot.GetKernel(), m.Boot.GetInitrd()} {
		if file != nil {
			r.Files = append(r.Files, describeImage(file))
		}
	}
	for _, named := range m.ContextImages {
		r.Files = append(r.Files, describeImage(named.Image))
	}
	return r
}

// describe is the machine as its driver wants it. With an empty Prepared it is only checked.
func (p *pass) describe(prepared disk.Prepared) (hypervisor.Machine, error) {
	w := p.want.Machine
	m := hypervisor.Machine{
		ID: p.id(), Name: w.Name, UUID: w.Uuid, CPU: w.Cpu, VCPU: int(w.Vcpu), MemoryMB: int(w.MemoryMb), Dir: p.dir(),
		Boot: hypervisor.Boot{Chipset: w.Boot.GetChipset(), CommandLine: w.Boot.GetCommandLine(),
			Order: w.Boot.GetOrder(), Firmware: w.Boot.GetFirmware()},
		Raw: w.Raw, Simulated: w.Simulated,
	}
	m.UID, m.GID = p.user()
	files := prepared.Files
	for _, file := range []struct {
		image *wire.Image
		path  *string
	}{{w.Boot.GetKernel(), &m.Boot.Kernel}, {w.Boot.GetInitrd(), &m.Boot.Initrd}} {
		if file.image != nil && len(files) > 0 {
			*file.path, files = files[0], files[1:]
		}
	}
	for i, d := range w.Disks {
		disk := hypervisor.Disk{ID: int(d.Id), Target: d.Target, CDROM: d.Cdrom, Cache: d.Cache, Discard: d.Discard}
		if i < len(prepared.Devices) {
			disk.Device = prepared.Devices[i]
		}
		m.Disks = append(m.Disks, disk)
	}
	if g := w.Graphics; g != nil {
		m.Graphics = &hypervisor.Graphics{Type: g.Type, Listen: g.Listen, Port: int(g.Port), Password: g.Password}
	}
	if p.hasContext() {
		if p.needs().context {
			m.Disks = append(m.Disks, p.contextDisk())
		} else if p.needs().tree {
			m.Context = p.contextDir()
		}
	}
	for _, n := range w.Nics {
		nic, err := describeNIC(p.vm(), n)
		if err != nil {
			return m, err
		}
		if p.needs().port != "" && n.Network == nil {
			return m, fault.Errorf(fault.Invalid, "machine %d: NIC %d has no network", p.vm(), n.Id)
		}
		m.NICs = append(m.NICs, nic)
	}
	return m, nil
}

func describeNIC(vm int64, n *wire.NIC) (hypervisor.NIC, error) {
	nic := hypervisor.NIC{ID: int(n.Id), MAC: n.Mac, Model: n.Model, Bridge: n.Network.GetBridge(),
		Port: portName(vm, n.Id), Gateway: n.Gateway, MTU: int(n.Mtu)}
	if nic.MTU == 0 {
		nic.MTU = int(n.Network.GetMtu())
	}
	addresses, err := addresses(vm, n)
	if err != nil {
		return nic, err
	}
	for _, ip := range addresses {
		if ip.Is4() {
			nic.IP = netip.PrefixFrom(ip, int(n.Prefix)).String()
			break
		}
	}
	return nic, nil
}

func addresses(vm int64, n *wire.NIC) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range n.Ips {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fault.Errorf(fault.Invalid, "machine %d: NIC %d: %w", vm, n.Id, err)
		}
		all = append(all, ip)
	}
	return all, nil
}

// contextDisk is the disk that shows the context: a CD-ROM where the bus has such, read-only everywhere.
func (p *pass) contextDisk() hypervisor.Disk {
	target, next := p.want.Machine.ContextTarget, 0
	taken := map[string]bool{}
	for _, d := range p.want.Machine.Disks {
		taken[d.Target] = true
		next = max(next, int(d.Id)+1)
	}
	for letter := 'a'; target == "" && letter <= 'z'; letter++ {
		if name := fmt.Sprintf("vd%c", letter); !taken[name] && letter != 'a' {
			target = name
		}
	}
	return hypervisor.Disk{
		ID: next, Target: target, CDROM: strings.HasPrefix(target, "hd") || strings.HasPrefix(target, "sd"),
		Device: device.Device{Kind: device.File, Format: device.Raw, Path: p.contextImage(), ReadOnly: true},
	}
}

// portName is the name of a NIC's port on the host.
func portName(vm int64, nic int32) string { return fmt.Sprintf("one-%d-%d", vm, nic) }

func portNames(vm int64, m *wire.Machine) []string {
	if needsOf(m.Hypervisor).port == "" {
		return nil
	}
	var names []string
	for _, n := range m.Nics {
		names = append(names, portName(vm, n.Id))
	}
	return names
}
