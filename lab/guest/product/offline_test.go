package product

import (
	"fmt"
	"strings"
	"testing"

	"hayloft/lab/labtest"
	"hayloft/server/api"
)

// TestGuestOfflineCopies has machines run on whole copies of images in thin volumes: copied once, said how far it is, snapshots for
// all, also while the storage server is away; and on a persistent image that goes back to its server.
func TestGuestOfflineCopies(t *testing.T) {
	labtest.Guest(t)
	const size = 64 << 20
	disks := labtest.Disks(t, 2)
	group(t, scratch, disks[1], keep...)
	server, path := nas(t)
	p := begin(t, "--ls-mad", "lvm", "--ls-path", scratch, "--ls-layout", "thin", "--ls-max", "600")
	p.datastore(fmt.Sprintf("NAME=nas DS_MAD=nfs BASE_PATH=%q", path))
	p.image("big", "nas", "OS", bootSector(t, mark(mark(noise(size), 2, "0th boot"), size/sectorSize-1, "the end."),
		access{0, size/sectorSize - 1, false}, access{0, 2, true}, access{1, 8, true}, access{2, 20000, true}))
	mine := p.persistent("mine", "nas", mark(noise(8<<20), 8, "0th mine"))

	var shown string
	first := p.machine(probe("IMAGE=big, CACHE_MODE=OFFLINE", "IMAGE=mine, CACHE_MODE=OFFLINE", "TYPE=fs, FS=ext4, SIZE=16"))
	vm := p.reaches(first, "RUNNING", func(vm api.VM) {
		if vm.Total == size && vm.Done > 0 && vm.Done < size && !strings.Contains(shown, "PROGRESS") {
			shown = p.cli("vm", "show", fmt.Sprint(first))
		}
	})
	if !strings.Contains(shown, "PROGRESS") || !strings.Contains(shown, "of 64") {
		t.Errorf("vm show, while 64 MiB were copied: %s", shown)
	}
	if vm.Timing.ReadBytes < size || vm.Timing.ReadBytes > size+16<<20 {
		t.Errorf("read %d bytes", vm.Timing.ReadBytes)
	}
	p.expect("the first boot", p.console(first), []string{"the end.", "1th boot", "1th mine", untouched})
	p.expect("the volatile disk", p.sh(fmt.Sprintf("blkid -p -s TYPE -o value /dev/%s/hayloft-%s-%d.2", scratch, instance, first)), "ext4")
	p.expect("bases in volumes", p.bases(), 1)

	server.Stop()
	second := p.machine(probe("IMAGE=big, CACHE_MODE=OFFLINE"))
	vm = p.reaches(second, "RUNNING")
	if vm.Timing.ReadBytes > 1<<20 {
		t.Errorf("the second machine read %d bytes", vm.Timing.ReadBytes)
	}
	p.expect("another machine's boot", p.console(second), []string{"the end.", "1th boot", "!", "!"})
	p.through(first, "poweroff-hard", "POWEROFF")
	p.through(first, "resume", "RUNNING")
	p.expect("the second boot", p.console(first), []string{"the end.", "2th boot", "2th mine", "\x02" + untouched[1:]})
	server.Resume()
	p.expect("volumes", p.ofMachine(first)+" "+p.ofMachine(second), fmt.Sprintf("%[1]d.0 %[1]d.2 %[2]d.0", first, second))
	p.expect("the persistent image", p.sector(server.Dir, mine.Source, 8), "0th mine")

	p.through(second, "poweroff-hard", "POWEROFF")
	saved, err := p.client.SaveAs(t.Context(), second, 0, "saved")
	if err != nil {
		t.Fatal(err)
	}
	image := p.imageReady(saved)
	p.expect("the saved copy", p.sector(server.Dir, image.Source, 2), "1th boot")
	if image.SavedFrom == nil || image.SavedFrom.Moved > size/8 {
		t.Errorf("to save one sector was moved: %+v", image.SavedFrom)
	}
	p.through(first, "terminate-hard", "DONE")
	p.expect("the persistent image", p.sector(server.Dir, mine.Source, 8), "2th mine")
	p.through(second, "terminate-hard", "DONE")
	p.expect("volumes", p.ofMachine(first)+p.ofMachine(second), "")
	for _, name := range []string{"saved", "big", "mine"} {
		p.deleteImage(name)
	}
}

// bases counts the volumes with whole images.
func (p *product) bases() int {
	p.Helper()
	n := 0
	for name := range p.volumes() {
		if strings.HasPrefix(name, "base.") {
			n++
		}
	}
	return n
}
