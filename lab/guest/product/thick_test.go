package product

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"hayloft/lab/labtest"
)

// TestGuestThickVolumes leads machines with disks in thick volumes through their lives, on images of an iSCSI target that the kernel
// makes devices of this host: read, in place, and behind the kernel's cache.
func TestGuestThickVolumes(t *testing.T) {
	labtest.Guest(t)
	disks := labtest.Disks(t, 2)
	group(t, scratch, disks[1], keep...)
	san(t, disks[0], "hl-boot")
	p := begin(t, "--ls-mad", "lvm", "--ls-path", scratch, "--ls-max", "400", "--lc-mad", "dm-cache")
	p.datastore(fmt.Sprintf("NAME=san DS_MAD=iscsi BASE_PATH=%q ATTACH=kernel", images))
	p.image("root", "san", "OS", bootSector(t, mark(noise(4<<20), 1, "the root"),
		access{0, 1, false}, access{0, 2, true}, access{1, 8, true}, access{2, 8, true}))
	content := mark(noise(8<<20), 8, "0th data")
	inPlace, cached := p.persistent("in-place", "san", content), p.persistent("cached", "san", content)

	id := p.machine(probe("IMAGE=root", "IMAGE=in-place, CACHE_MODE=NONE", "IMAGE=cached, CACHE_MODE=THRU, CACHE_SIZE=16"))
	p.reaches(id, "RUNNING")
	p.expect("the first boot", p.console(id)[2:], []string{"1th data", "1th data"})
	p.expect("the machine's volumes", p.ofMachine(id), fmt.Sprintf("%[1]d.0 %[1]d.2.cache", id))
	p.reserved(4 + 16)
	p.expect("sessions of iSCSI", len(strings.Split(p.sh("iscsiadm -m session"), "\n")), 2)
	p.through(id, "poweroff-hard", "POWEROFF")
	p.through(id, "resume", "RUNNING")
	p.expect("the second boot", p.console(id)[2:], []string{"2th data", "2th data"})
	p.through(id, "terminate-hard", "DONE")
	p.expect("the machine's volumes", p.ofMachine(id), "")
	p.reserved(0)
	copy(content[8*sectorSize:], "2th data")
	for _, i := range []string{inPlace.Source, cached.Source} {
		if got := p.onServer(i, len(content)); !bytes.Equal(got, content) {
			t.Errorf("image %s differs; sector 8 is %q", i, got[8*sectorSize:][:8])
		}
	}
	for _, name := range []string{"root", "in-place", "cached"} {
		p.deleteImage(name)
	}
}

// onServer reads an object of the iSCSI datastore where its volume is.
func (p *product) onServer(object string, size int) []byte {
	p.Helper()
	volume := images + "/hl-" + object
	p.sh("lvchange -qq -ay -K " + volume)
	b, err := os.ReadFile("/dev/" + volume)
	if err != nil || len(b) < size {
		p.Fatalf("object %s: %d bytes: %v", object, len(b), err)
	}
	return b[:size]
}
