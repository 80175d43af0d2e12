package scheduler

import (
	"testing"

	"hayloft/cloud"
)

// Among hosts that are otherwise alike the one with most bytes of the machine's images is taken.
func TestPartialCopiesCount(t *testing.T) {
	const digest = "blake3:aa"
	machine := vm(0, 1, 1024)
	machine.Disks = []cloud.Disk{{ImageID: 1, Digest: digest, ImageSize: 100 << 20}, {ID: 1, ImageID: 1, Digest: digest, ImageSize: 100 << 20}}
	part := func(digest string, megabytes int64) []cloud.PartialBase {
		return []cloud.PartialBase{{Digest: digest, Present: megabytes << 20, Total: 100 << 20}}
	}
	for name, tt := range map[string]struct {
		change func(hosts []*Host)
		want   int
	}{
		"nothing anywhere":     {func([]*Host) {}, 1},
		"a part":               {func(h []*Host) { h[2].Partial = part(digest, 1) }, 3},
		"more of it":           {func(h []*Host) { h[1].Partial, h[2].Partial = part(digest, 70), part(digest, 60) }, 2},
		"all of it":            {func(h []*Host) { h[1].Partial, h[2].Bases = part(digest, 99), []string{digest} }, 3},
		"another image":        {func(h []*Host) { h[2].Partial = part("blake3:bb", 90) }, 1},
		"less loaded is first": {func(h []*Host) { h[2].Bases, h[2].Used.CPU = []string{digest}, 1 }, 1},
	} {
		hosts := []*Host{host(1, 8, 8192, 1000), host(2, 8, 8192, 1000), host(3, 8, 8192, 1000)}
		tt.change(hosts)
		placed, _ := Scheduler{Policy: Striping}.Pass([]cloud.VM{machine}, hosts)
		if len(placed) != 1 || placed[0].Host != tt.want {
			t.Errorf("%s: placed %v, want host %d", name, placed, tt.want)
		}
	}
}

// A base that is there in part has its space already.
func TestPartialBaseTakesNoMoreSpace(t *testing.T) {
	machine := vm(0, 1, 1024)
	machine.Disks = []cloud.Disk{{ImageID: 1, Digest: "blake3:aa", ImageSize: 100 << 20, Size: 10 << 20}}
	h := host(1, 8, 8192, 50)
	if why := (Scheduler{}).Fits(&machine, h); why == "" {
		t.Error("100 MB of a base fit into 50")
	}
	h.Partial = []cloud.PartialBase{{Digest: "blake3:aa", Present: 1, Total: 100 << 20}}
	if why := (Scheduler{}).Fits(&machine, h); why != "" {
		t.Error(why)
	}
	h.Partial = nil
	machine.Disks[0].CacheSize = 30 << 20
	if why := (Scheduler{}).Fits(&machine, h); why != "" {
		t.Errorf("with CACHE_SIZE: %s", why)
	}
}
