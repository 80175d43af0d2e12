package lifecycle

import (
	"context"
	"slices"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/wire"
)

const mebi = 1 << 20

// Connected implements fleet.Reports.
func (r *Recorder) Connected(ctx context.Context, host int, session string, hello *wire.Hello) error {
	_, revision, err := r.inv.Hosts.Update(ctx, host, func(h *cloud.Host) error {
		h.Session, h.Version, h.Error = session, hello.Version, ""
		if h.State != cloud.HostStateDisabled && h.State != cloud.HostStateOffline {
			h.State = cloud.HostStateMonitored
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.inv.WaitFor(ctx, revision)
}

// Host implements fleet.Reports: it records what the host has, if that changed.
func (r *Recorder) Host(ctx context.Context, host int, session string, hello *wire.Hello, state *wire.HostState) error {
	known, err := r.inv.Host(host)
	if err != nil {
		return err
	}
	describe(&known, state)
	if now, err := r.inv.Host(host); err == nil && sameHost(now, known) {
		return nil
	}
	_, revision, err := r.inv.Hosts.Update(ctx, host, func(h *cloud.Host) error {
		describe(h, state)
		return nil
	})
	if err != nil {
		return err
	}
	return r.inv.WaitFor(ctx, revision) // the next report is compared with this one
}

func describe(h *cloud.Host, s *wire.HostState) {
	h.CPU = s.Cpu
	h.MemoryMB = int(s.Memory / mebi)
	h.DiskMB = int(s.DiskTotal / mebi)
	h.Bases = slices.Clone(s.Bases)
	h.Storage = cloud.HostStorage{}
	if st := s.Storage; st != nil {
		h.Storage = cloud.HostStorage{LSMad: st.LsMad, LSPath: st.LsPath, LSMaxMB: int(st.LsMax / mebi), LCMad: st.LcMad, LCModes: slices.Clone(st.LcModes)}
	}
	h.Partial = nil
	for _, p := range s.Partial {
		h.Partial = append(h.Partial, cloud.PartialBase{Digest: p.Digest, Present: p.Present, Total: p.Total})
	}
	h.Orphans = nil
	for _, vm := range s.Orphans {
		h.Orphans = append(h.Orphans, int(vm))
	}
	h.Hypervisor = nil
	for _, hv := range s.Hypervisors {
		h.Hypervisor = append(h.Hypervisor, cloud.HostHypervisor{Name: hv.Name, Version: hv.Version, Accelerator: hv.Accelerator,
			Chipsets: hv.Chipsets, Notes: hv.Notes, Error: hv.Error, Attributes: hv.Attributes})
	}
}

// diskSlack is how much the size of a host's local store may drift, as other users of the file system
// come and go, before it is recorded again.
const diskSlackMB = 256

func sameHost(a, b cloud.Host) bool {
	if drift := a.DiskMB - b.DiskMB; drift > diskSlackMB || drift < -diskSlackMB {
		return false
	}
	return a.CPU == b.CPU && a.MemoryMB == b.MemoryMB && slices.Equal(a.Bases, b.Bases) && samePartial(a.Partial, b.Partial) &&
		slices.Equal(a.Orphans, b.Orphans) && sameStorage(a.Storage, b.Storage) && slices.EqualFunc(a.Hypervisor, b.Hypervisor, sameHypervisor)
}

func sameStorage(a, b cloud.HostStorage) bool {
	return a.LSMad == b.LSMad && a.LSPath == b.LSPath && a.LSMaxMB == b.LSMaxMB && a.LCMad == b.LCMad && slices.Equal(a.LCModes, b.LCModes)
}

// samePartial lets copies that are being filled grow by a tenth of their image before they are recorded again.
func samePartial(a, b []cloud.PartialBase) bool {
	return slices.EqualFunc(a, b, func(a, b cloud.PartialBase) bool {
		drift := a.Present - b.Present
		return a.Digest == b.Digest && a.Total == b.Total && max(drift, -drift) <= a.Total/10
	})
}

func sameHypervisor(a, b cloud.HostHypervisor) bool {
	return a.Name == b.Name && a.Version == b.Version && a.Accelerator == b.Accelerator && a.Error == b.Error &&
		slices.Equal(a.Chipsets, b.Chipsets) && slices.Equal(a.Notes, b.Notes)
}

// Gone implements fleet.Reports: the session ended. The host is given up by the Controller if it does
// not come back in time.
func (r *Recorder) Gone(ctx context.Context, host int, session string) error {
	_, _, err := r.inv.Hosts.Update(ctx, host, func(h *cloud.Host) error {
		if h.Session == session {
			h.Session = ""
		}
		return nil
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// hasRunning says whether machines of the host are RUNNING.
func (c *Controller) hasRunning(host int) bool {
	return slices.ContainsFunc(c.inv.VMsOnHost(host), func(vm cloud.VM) bool { return vm.Phase() == cloud.Active(cloud.LCMRunning) })
}

// giveUp marks a host without a session as failed and its machines as UNKNOWN. It ends when the host comes back meanwhile, whose word
// counts for more (fault.Busy), and can be done again: a server may have ended in the midst of it.
func (c *Controller) giveUp(ctx context.Context, id int) error {
	host, revision, err := c.inv.Hosts.Update(ctx, id, func(h *cloud.Host) error {
		if h.Session != "" || h.State != cloud.HostStateMonitored && h.State != cloud.HostStateError {
			return fault.Errorf(fault.WrongState, "host %s is there again", h.Name)
		}
		h.State, h.Error = cloud.HostStateError, "its agent is not connected"
		return nil
	}, c.fence)
	if err != nil {
		return err
	}
	c.log.Warn("host given up", "host", host.Name)
	for _, vm := range c.inv.VMsOnHost(id) {
		if vm.Phase() != cloud.Active(cloud.LCMRunning) {
			continue
		}
		_, _, err := c.inv.VMs.Update(ctx, vm.ID, func(vm *cloud.VM) error {
			if vm.HostID != id {
				return fault.Errorf(fault.WrongState, "vm %d has left host %s", vm.ID, host.Name)
			}
			if err := Apply(vm, cloud.EventLost, c.now()); err != nil {
				return err
			}
			vm.Error = "host " + host.Name + " is not connected"
			return nil
		}, c.fence, c.inv.Hosts.Cond(id, revision))
		if err != nil && !fault.Is(err, fault.WrongState) {
			return err
		}
	}
	return nil
}
