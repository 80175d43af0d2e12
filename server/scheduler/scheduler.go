// Package scheduler decides where machines go. It is a pure function of what waits and what the hosts
// have; the server's lifecycle calls it and carries out the result.
package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"hayloft/cloud"
)

// Policy orders the hosts that can take a machine.
type Policy string

// The policies. Packing fills the fullest host first, striping the emptiest.
const (
	Packing  Policy = "packing"
	Striping Policy = "striping"
)

// Limits bound one pass, as OpenNebula's scheduler has them; 0 is no limit.
type Limits struct {
	MaxVM       int // machines looked at
	MaxDispatch int // machines placed
	MaxHost     int // machines placed on one host
}

// Demand is what a machine takes of a host.
type Demand struct {
	CPU      float64 // cores
	MemoryMB int
	DiskMB   int // of the local store
}

// DemandOf adds up what a machine takes of a host with that storage.
func DemandOf(vm *cloud.VM, storage *cloud.HostStorage) Demand {
	d := Demand{CPU: vm.CPU, MemoryMB: vm.MemoryMB}
	var bytes int64
	for i := range vm.Disks {
		bytes += storage.LocalBytes(&vm.Disks[i])
	}
	d.DiskMB = int((bytes + mebi - 1) / mebi)
	return d
}

const mebi = 1 << 20

// Host is a host with what is taken of it.
type Host struct {
	cloud.Host
	Used   Demand
	VMs    int             // machines on it
	placed int             // in this pass
	ids    []int           // of the machines on it
	bases  map[string]bool // digests counted as there or on their way
}

// Add counts a machine that is on the host, or will be.
func (h *Host) Add(vm *cloud.VM) {
	d := h.demand(vm)
	for i := range vm.Disks {
		if digest := vm.Disks[i].Digest; digest != "" {
			h.learn(digest)
		}
	}
	h.Used.CPU += d.CPU
	h.Used.MemoryMB += d.MemoryMB
	h.Used.DiskMB += d.DiskMB
	h.VMs++
	h.ids = append(h.ids, vm.ID)
}

// demand is what the machine takes of this host: with the bases that are not there yet.
func (h *Host) demand(vm *cloud.VM) Demand {
	d := DemandOf(vm, &h.Storage)
	seen := map[string]bool{}
	for i := range vm.Disks {
		disk := &vm.Disks[i]
		if disk.BaseBytes() == 0 || seen[disk.Digest] || h.has(disk.Digest) {
			continue
		}
		seen[disk.Digest] = true
		d.DiskMB += int((disk.BaseBytes() + mebi - 1) / mebi)
	}
	return d
}

// has reports whether the host has set space aside for a base: all of it is counted from its first chunk on.
func (h *Host) has(digest string) bool {
	return h.bases[digest] || slices.Contains(h.Bases, digest) ||
		slices.ContainsFunc(h.Partial, func(p cloud.PartialBase) bool { return p.Digest == digest })
}

// held is how many bytes of the machine's images are on the host already; partial copies count for what they have.
func (h *Host) held(vm *cloud.VM) int64 {
	var bytes int64
	seen := map[string]bool{}
	for i := range vm.Disks {
		d := &vm.Disks[i]
		if d.Digest == "" || d.Persistent || seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		if slices.Contains(h.Bases, d.Digest) {
			bytes += d.ImageSize
			continue
		}
		for _, p := range h.Partial {
			if p.Digest == d.Digest {
				bytes += min(p.Present, d.ImageSize)
			}
		}
	}
	return bytes
}

func (h *Host) learn(digest string) {
	if h.bases == nil {
		h.bases = map[string]bool{}
	}
	h.bases[digest] = true
}

// Placement says that a machine goes to a host.
type Placement struct{ VM, Host int }

// Scheduler holds what does not change between passes.
type Scheduler struct {
	Policy Policy
	Limits Limits
}

// Pass places what it can, in the order given, and says of every other machine it looked at why no host
// takes it. hosts are changed: what is placed counts as used.
func (s Scheduler) Pass(waiting []cloud.VM, hosts []*Host) (placed []Placement, refused map[int]string) {
	refused = map[int]string{}
	for i := range waiting {
		if s.Limits.MaxVM > 0 && i >= s.Limits.MaxVM || s.Limits.MaxDispatch > 0 && len(placed) >= s.Limits.MaxDispatch {
			break
		}
		vm := &waiting[i]
		best, why := s.choose(vm, hosts)
		if best == nil {
			refused[vm.ID] = why
			continue
		}
		best.Add(vm)
		best.placed++
		placed = append(placed, Placement{vm.ID, best.ID})
	}
	return placed, refused
}

func (s Scheduler) choose(vm *cloud.VM, hosts []*Host) (best *Host, why string) {
	var refusals []string
	var bestRank float64
	for _, h := range hosts {
		reason := s.refuse(vm, h)
		var rank float64
		if reason == "" && vm.Rank != "" {
			var err error
			if rank, err = Value(vm.Rank, h); err != nil {
				reason = "SCHED_RANK: " + err.Error()
			}
		}
		if reason != "" {
			refusals = append(refusals, "host "+h.Name+" "+reason)
			continue
		}
		if best == nil || rank > bestRank || rank == bestRank && s.better(vm, h, best) {
			best, bestRank = h, rank
		}
	}
	if best == nil && len(hosts) == 0 {
		return nil, "there is no host"
	}
	return best, summarize(refusals)
}

// summarize keeps the message within what a person reads and a record should hold.
func summarize(refusals []string) string {
	const most = 20
	if len(refusals) > most {
		refusals = append(slices.Clip(refusals[:most]), fmt.Sprintf("and %d more", len(refusals)-most))
	}
	return strings.Join(refusals, "; ")
}

// Fits says why a host cannot take a machine, "" when it can; for a deployment to a named host.
func (s Scheduler) Fits(vm *cloud.VM, h *Host) string { return s.refuse(vm, h) }

func (s Scheduler) refuse(vm *cloud.VM, h *Host) string {
	d := h.demand(vm)
	if h.State != cloud.HostStateMonitored {
		return "is " + strings.ToLower(h.State.String())
	}
	if h.Session == "" {
		return "is not connected"
	}
	if ok, why := h.Runs(vm.Hypervisor); !ok {
		return why
	}
	if m := vm.OS.Machine; m != "" && !hasChipset(h, vm.Hypervisor, m) {
		return "has no machine type " + m
	}
	for i := range vm.Disks {
		if why := h.Storage.CanCache(&vm.Disks[i]); why != "" {
			return why
		}
	}
	max := Capacity(&h.Host)
	if free := max.MemoryMB - h.Used.MemoryMB; d.MemoryMB > free {
		return fmt.Sprintf("has %d MB of memory free, %d needed", free, d.MemoryMB)
	}
	if free := max.CPU - h.Used.CPU; d.CPU > free+1e-9 {
		return fmt.Sprintf("has %.2f CPU free, %.2f needed", free, d.CPU)
	}
	if free := max.DiskMB - h.Used.DiskMB; d.DiskMB > free {
		return fmt.Sprintf("has %d MB of local disk free, %d needed", free, d.DiskMB)
	}
	if vm.Requirements != "" {
		ok, why, err := Evaluate(vm.Requirements, h)
		if err != nil {
			return "SCHED_REQUIREMENTS: " + err.Error()
		}
		if !ok {
			return "does not meet SCHED_REQUIREMENTS: " + why
		}
	}
	if s.Limits.MaxHost > 0 && h.placed >= s.Limits.MaxHost {
		return "got its share of this pass"
	}
	return ""
}

func hasChipset(h *Host, hypervisor, chipset string) bool {
	for _, hv := range h.Hypervisor {
		if hv.Name == hypervisor {
			return len(hv.Chipsets) == 0 || slices.Contains(hv.Chipsets, chipset)
		}
	}
	return false
}

// better orders two hosts of the same rank: by load as the policy says, then by what they have of the machine's
// images, then by id.
func (s Scheduler) better(vm *cloud.VM, a, b *Host) bool {
	byLoad := cmp.Compare(load(a), load(b))
	if s.Policy == Packing {
		byLoad = -byLoad
	}
	return cmp.Or(byLoad, -cmp.Compare(a.held(vm), b.held(vm)), cmp.Compare(a.ID, b.ID)) < 0
}

// load is the fullest of a host's resources, 0 to 1.
func load(h *Host) float64 {
	c := Capacity(&h.Host)
	part := func(used, all float64) float64 {
		if all <= 0 {
			return 0
		}
		return used / all
	}
	return max(part(h.Used.CPU, c.CPU), part(float64(h.Used.MemoryMB), float64(c.MemoryMB)),
		part(float64(h.Used.DiskMB), float64(c.DiskMB)))
}
