package lifecycle

import (
	"fmt"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/wire"
)

var wireGoals = map[string]wire.Goal{
	GoalNone:      wire.Goal_GOAL_UNSPECIFIED,
	GoalRunning:   wire.Goal_GOAL_RUNNING,
	GoalOff:       wire.Goal_GOAL_OFF,
	GoalSuspended: wire.Goal_GOAL_SUSPENDED,
	GoalStashed:   wire.Goal_GOAL_STASHED,
	GoalGone:      wire.Goal_GOAL_GONE,
}

// Catalog finds what assignments refer to.
type Catalog interface {
	Datastore(id int) (cloud.Datastore, error)
	Network(id int) (cloud.Network, error)
	Image(id int) (cloud.Image, error)
}

// Assignment writes out what a host must know to carry out a machine's orders. The error names what
// the machine needs and the catalog has not.
func Assignment(vm *cloud.VM, c Catalog) (*wire.Assignment, error) {
	o := vm.Orders
	a := &wire.Assignment{
		Vm: int64(vm.ID), Epoch: o.Epoch, Goal: wireGoals[o.Goal], Hard: o.Hard, WithMemory: o.WithMemory,
		Restore: o.Restore, Unstash: o.Unstash, ShutdownSeconds: int32(vm.Shutdown), Reboot: o.Reboot, RebootHard: o.RebootHard,
	}
	var err error
	if a.System, err = wireRepository(c, vm.System); err != nil {
		return nil, err
	}
	if a.Machine, err = machine(vm, c); err != nil {
		return nil, err
	}
	for _, save := range o.Saves {
		image, err := c.Image(save.ImageID)
		if err != nil {
			return nil, err
		}
		repository, err := wireRepository(c, image.DatastoreID)
		if err != nil {
			return nil, err
		}
		a.Saves = append(a.Saves, &wire.SaveDisk{Operation: save.Operation, Disk: int32(save.Disk), Repository: repository,
			Name: image.Source, BeforeGone: save.BeforeGone})
	}
	return a, nil
}

func machine(vm *cloud.VM, c Catalog) (*wire.Machine, error) {
	m := &wire.Machine{
		Name: vm.Name, Uuid: vm.OS.UUID, Hypervisor: vm.Hypervisor, Cpu: vm.CPU, Vcpu: int32(vm.VCPU),
		MemoryMb: int32(vm.MemoryMB), Raw: vm.Raw, Simulated: vm.Simulated, ContextTarget: vm.ContextDev,
		Boot: &wire.Boot{Chipset: vm.OS.Machine, CommandLine: vm.OS.Command, Order: vm.OS.Boot, Firmware: vm.OS.Firmware},
	}
	var err error
	if m.Boot.Kernel, err = fileImage(vm.OS.Kernel, c); err != nil {
		return nil, err
	}
	if m.Boot.Initrd, err = fileImage(vm.OS.Initrd, c); err != nil {
		return nil, err
	}
	for _, d := range vm.Disks {
		wd, err := diskOf(d, c)
		if err != nil {
			return nil, err
		}
		m.Disks = append(m.Disks, wd)
	}
	for _, n := range vm.NICs {
		wn, err := nic(n, c)
		if err != nil {
			return nil, err
		}
		m.Nics = append(m.Nics, wn)
	}
	if g := vm.Graphics; g != nil {
		m.Graphics = &wire.Graphics{Type: g.Type, Listen: g.Listen, Port: int32(g.Port), Password: g.Password}
	}
	if vm.Context != nil {
		if m.Context, err = contextFiles(vm.Context); err != nil {
			return nil, err
		}
		for _, f := range vm.ContextFiles {
			image, err := fileImage(&f, c)
			if err != nil {
				return nil, err
			}
			m.ContextImages = append(m.ContextImages, &wire.NamedImage{Name: f.Name, Image: image})
		}
	}
	return m, nil
}

func diskOf(d cloud.Disk, c Catalog) (*wire.Disk, error) {
	w := &wire.Disk{Id: int32(d.ID), Size: d.Size, ReadOnly: d.ReadOnly, Cdrom: d.CDROM, Target: d.Target, Cache: d.Cache,
		Discard: d.Discard, VolatileType: d.Volatile, Fs: d.FS, Mode: d.Mode, CacheSize: d.CacheSize, Preload: d.Preload}
	if d.ImageID < 0 {
		return w, nil
	}
	ds, err := c.Datastore(d.DatastoreID)
	if err != nil {
		return nil, err
	}
	fill, rate, err := FillOf(ds.Template)
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "datastore %d: %w", ds.ID, err)
	}
	w.NoFill, w.FillRate = !fill, rate
	repository := repositoryOf(&ds)
	w.Image = &wire.Image{Id: int64(d.ImageID), Name: d.Image, Repository: repository, Source: d.Source, Format: d.Format,
		Digest: d.Digest, Size: d.ImageSize, Persistent: d.Persistent}
	return w, indexOf(w.Image, c)
}

// indexOf adds where an image's chunk index is, when that is not beside it.
func indexOf(w *wire.Image, c ImageCatalog) error {
	img, err := c.Image(int(w.Id))
	if err != nil || img.IndexIn == 0 {
		return nil // an image that is gone had no machine any more that needs it
	}
	ds, err := c.Datastore(img.IndexIn)
	if err != nil {
		return err
	}
	w.IndexRepository, w.IndexObject = repositoryOf(&ds), indexObject(img.ID)
	return nil
}

// ImageCatalog finds images and their datastores.
type ImageCatalog interface {
	Image(id int) (cloud.Image, error)
	Datastore(id int) (cloud.Datastore, error)
}

func fileImage(f *cloud.FileImage, c Catalog) (*wire.Image, error) {
	if f == nil {
		return nil, nil
	}
	repository, err := wireRepository(c, f.DatastoreID)
	if err != nil {
		return nil, err
	}
	w := &wire.Image{Id: int64(f.ImageID), Name: f.Name, Repository: repository, Source: f.Source, Format: "raw",
		Digest: f.Digest, Size: f.Size}
	return w, indexOf(w, c)
}

func wireRepository(c Catalog, id int) (*wire.Repository, error) {
	ds, err := c.Datastore(id)
	if err != nil {
		return nil, err
	}
	return repositoryOf(&ds), nil
}

func nic(n cloud.NIC, c Catalog) (*wire.NIC, error) {
	network, err := c.Network(n.NetworkID)
	if err != nil {
		return nil, err
	}
	w := &wire.NIC{Id: int32(n.ID), Mac: n.MAC, Model: n.Model, Prefix: int32(n.Prefix), Gateway: n.Gateway, Filter: n.Filter,
		Mtu: int32(network.MTU)}
	for _, ip := range []string{n.IP, n.IP6} {
		if ip != "" {
			w.Ips = append(w.Ips, ip)
		}
	}
	w.Network = &wire.Network{Id: int64(network.ID), Name: network.Name, Bridge: network.Bridge, Nat: network.NAT,
		Mtu: int32(network.MTU), Phydev: network.PhyDev}
	if network.Host && n.Gateway != "" {
		w.Network.Gateway = fmt.Sprintf("%s/%d", n.Gateway, n.Prefix)
	}
	return w, nil
}
