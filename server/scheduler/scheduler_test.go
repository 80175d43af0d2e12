package scheduler

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud"
)

func host(id int, cpu float64, memoryMB, diskMB int) *Host {
	return &Host{Host: cloud.Host{ID: id, Name: "node" + string(rune('0'+id)), State: cloud.HostStateMonitored, Session: "s",
		CPU: cpu, MemoryMB: memoryMB, DiskMB: diskMB, Hypervisor: []cloud.HostHypervisor{{Name: "qemu", Chipsets: []string{"pc", "q35"}}}}}
}

func vm(id int, cpu float64, memoryMB int) cloud.VM {
	return cloud.VM{ID: id, Hypervisor: "qemu", CPU: cpu, MemoryMB: memoryMB}
}

func several(n int) []cloud.VM {
	var vms []cloud.VM
	for id := range n {
		vms = append(vms, vm(id, 1, 1024))
	}
	return vms
}

func hostsOf(placed []Placement) []int {
	var ids []int
	for _, p := range placed {
		ids = append(ids, p.Host)
	}
	return ids
}

func TestPoliciesOrderHosts(t *testing.T) {
	for policy, want := range map[Policy][]int{
		Packing:  {1, 1, 1, 1, 2, 2},
		Striping: {1, 2, 1, 2, 1, 2},
	} {
		hosts := []*Host{host(1, 4, 4096, 0), host(2, 4, 4096, 0)}
		placed, refused := Scheduler{Policy: policy}.Pass(several(6), hosts)
		if got := hostsOf(placed); !slices.Equal(got, want) || len(refused) != 0 {
			t.Errorf("%s: hosts %v, want %v; refused %v", policy, got, want, refused)
		}
	}
}

func TestLimitsOfAPass(t *testing.T) {
	for name, tt := range map[string]struct {
		limits          Limits
		placed, refused int
	}{
		"none":         {Limits{}, 8, 0},
		"MAX_VM":       {Limits{MaxVM: 3}, 3, 0},
		"MAX_DISPATCH": {Limits{MaxDispatch: 5}, 5, 0},
		"MAX_HOST":     {Limits{MaxHost: 2}, 4, 4},
	} {
		hosts := []*Host{host(1, 8, 16384, 0), host(2, 8, 16384, 0)}
		placed, refused := Scheduler{Policy: Striping, Limits: tt.limits}.Pass(several(8), hosts)
		if len(placed) != tt.placed || len(refused) != tt.refused {
			t.Errorf("%s: %d placed, %d refused, want %d and %d", name, len(placed), len(refused), tt.placed, tt.refused)
		}
	}
}

func TestEveryRefusalSaysWhy(t *testing.T) {
	for want, change := range map[string]func(*cloud.VM, *Host){
		"has 512 MB of memory free, 1024 needed":  func(_ *cloud.VM, h *Host) { h.MemoryMB = 512 },
		"has 0.50 CPU free, 1.00 needed":          func(_ *cloud.VM, h *Host) { h.CPU = 0.5 },
		"has 10 MB of local disk free, 20 needed": func(v *cloud.VM, h *Host) { h.DiskMB = 10; v.Disks = []cloud.Disk{{ImageID: -1, Size: 20 << 20}} },
		"is disabled":                 func(_ *cloud.VM, h *Host) { h.State = cloud.HostStateDisabled },
		"is not connected":            func(_ *cloud.VM, h *Host) { h.Session = "" },
		"has no lxc":                  func(v *cloud.VM, _ *Host) { v.Hypervisor = "lxc" },
		"QEMU is not installed":       func(_ *cloud.VM, h *Host) { h.Hypervisor[0].Error = "QEMU is not installed" },
		"has no machine type microvm": func(v *cloud.VM, _ *Host) { v.OS.Machine = "microvm" },
		"does not meet SCHED_REQUIREMENTS: NAME = other": func(v *cloud.VM, _ *Host) { v.Requirements = "NAME = other" },
		"has 1.00 CPU free, 2.00 needed": func(v *cloud.VM, h *Host) {
			v.CPU = 2
			h.CPU = 4
			h.Attributes = map[string]string{"RESERVED_CPU": "300"}
		},
		"has 100 MB of memory free, 1024 needed": func(_ *cloud.VM, h *Host) { h.Attributes = map[string]string{"RESERVED_MEM": "1024"}; h.MemoryMB = 101 },
		"has 2048 MB of memory free, 3000 needed": func(v *cloud.VM, h *Host) {
			v.MemoryMB = 3000
			h.Attributes = map[string]string{"RESERVED_MEM": "50%"}
			h.MemoryMB = 4096
		},
	} {
		v, h := vm(0, 1, 1024), host(1, 4, 4096, 0)
		change(&v, h)
		placed, refused := Scheduler{Policy: Packing}.Pass([]cloud.VM{v}, []*Host{h})
		if len(placed) != 0 || !strings.Contains(refused[0], "host node1 ") || !strings.Contains(refused[0], want) {
			t.Errorf("want %q, got %q (%d placed)", want, refused[0], len(placed))
		}
	}
	_, refused := Scheduler{}.Pass(several(1), nil)
	if refused[0] != "there is no host" {
		t.Errorf("without hosts: %q", refused[0])
	}
}

func TestRankBeatsThePolicy(t *testing.T) {
	v := vm(0, 1, 100)
	v.Rank = "FREE_MEMORY"
	placed, _ := Scheduler{Policy: Packing}.Pass([]cloud.VM{v}, []*Host{host(1, 4, 1000, 0), host(2, 4, 9000, 0), host(3, 4, 2000, 0)})
	if len(placed) != 1 || placed[0].Host != 2 {
		t.Errorf("placed %v, want host 2", placed)
	}
}

// A persistent disk takes what its cache takes on the host, which is another size where the kernel has the cache.
func TestKernelCachesAreCounted(t *testing.T) {
	for _, row := range []struct {
		driver, mode         string
		cacheMB, imageMB, is int64
	}{
		{"", "BACK", 0, 8, 8},
		{"hayloft", "BACK", 16, 8, 8},
		{"hayloft", "NONE", 16, 8, 0},
		{"dm-cache", "BACK", 0, 8, 64},
		{"dm-cache", "BACK", 16, 8, 16},
		{"bcache", "THRU", 0, 8192, 1024},
		{"bcache", "AROUND", 100, 8192, 100},
		{"dm-cache", "NONE", 0, 8192, 0},
		{"dm-cache", "OFFLINE", 0, 8192, 8192},
	} {
		v := vm(0, 1, 100)
		v.Disks = []cloud.Disk{{ImageID: 1, Persistent: true, Mode: row.mode, CacheSize: row.cacheMB << 20, ImageSize: row.imageMB << 20, Size: row.imageMB << 20}}
		h := host(1, 8, 65536, 100000)
		h.Storage.LCMad = row.driver
		h.Add(&v)
		if int64(h.Used.DiskMB) != row.is {
			t.Errorf("%+v: %d MB", row, h.Used.DiskMB)
		}
	}
}

// A base is counted once a host however many machines use it, and not at all where it is already.
func TestBasesAreCountedOnce(t *testing.T) {
	image := cloud.Disk{ImageID: 1, Digest: "blake3:aa", ImageSize: 100 << 20, Size: 10 << 20}
	vms := several(4)
	for i := range vms {
		vms[i].Disks = []cloud.Disk{image}
	}
	cold := host(1, 8, 65536, 135)
	placed, refused := Scheduler{}.Pass(vms, []*Host{cold})
	if len(placed) != 3 || len(refused) != 1 { // 100 + 3 x 10, and 5 left
		t.Errorf("cold host: %d placed, refused %v", len(placed), refused)
	}
	warm := host(1, 8, 65536, 45)
	warm.Bases = []string{"blake3:aa"}
	if placed, refused := (Scheduler{}).Pass(vms, []*Host{warm}); len(placed) != 4 {
		t.Errorf("warm host: %d placed, refused %v", len(placed), refused)
	}
}

// Whatever comes, no host is given more than it has, and every machine is placed or refused.
func TestNoHostIsOvercommitted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var hosts []*Host
		for id := range rapid.IntRange(0, 4).Draw(t, "hosts") {
			hosts = append(hosts, host(id, float64(rapid.IntRange(1, 8).Draw(t, "cores")), rapid.IntRange(128, 8192).Draw(t, "memory"), 0))
		}
		var vms []cloud.VM
		for id := range rapid.IntRange(0, 30).Draw(t, "machines") {
			vms = append(vms, vm(id, rapid.Float64Range(0.01, 3).Draw(t, "cpu"), rapid.IntRange(1, 4096).Draw(t, "mb")))
		}
		policy := rapid.SampledFrom([]Policy{Packing, Striping}).Draw(t, "policy")
		placed, refused := Scheduler{Policy: policy}.Pass(vms, hosts)
		if len(placed)+len(refused) != len(vms) {
			t.Fatalf("%d placed and %d refused of %d", len(placed), len(refused), len(vms))
		}
		for _, h := range hosts {
			if h.Used.CPU > h.CPU+1e-6 || h.Used.MemoryMB > h.MemoryMB {
				t.Fatalf("host %d has %v cores, %d MB and gave %+v", h.ID, h.CPU, h.MemoryMB, h.Used)
			}
		}
	})
}
