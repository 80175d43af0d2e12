package product

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/lab/labtest"
)

// TestGuestThinVolumes leads a machine on an image from NFS, with disks in thin volumes, and a persistent image that the kernel caches
// in mode BACK, from import to deletion.
func TestGuestThinVolumes(t *testing.T) {
	labtest.Guest(t)
	disks := labtest.Disks(t, 2)
	group(t, scratch, disks[1], keep...)
	server, path := nas(t)
	p := begin(t, "--ls-mad", "lvm", "--ls-path", scratch, "--ls-layout", "thin", "--ls-max", "400", "--lc-mad", "dm-cache")
	p.datastore(fmt.Sprintf("NAME=nas DS_MAD=nfs BASE_PATH=%q UNORDERED_BACK=YES", path))
	boot := bootSector(t, mark(mark(noise(2<<20), 1, "the root"), 2, "0th boot"),
		access{0, 1, false}, access{0, 2, true}, access{1, 8, true}, access{2, 8000, true})
	p.image("boot", "nas", "OS", boot)
	data := p.persistent("data", "nas", mark(noise(8<<20), 8, "0th data"))
	id := p.machine(probe("IMAGE=boot", "IMAGE=data, CACHE_MODE=BACK, CACHE_SIZE=16", "TYPE=swap, SIZE=8"))
	p.reaches(id, "RUNNING")
	p.expect("what the machine prints", p.console(id), []string{"the root", "1th boot", "1th data", untouched})
	p.expect("the swap disk", p.sh(fmt.Sprintf("blkid -p -s TYPE -o value /dev/%s/hayloft-%s-%d.2", scratch, instance, id)), "swap")
	p.expect("the machine's volumes", p.ofMachine(id), fmt.Sprintf("%[1]d.0 %[1]d.1.cache %[1]d.2", id))
	p.reserved(2 + 16 + 8)
	if text := p.sh("dmsetup table --target cache"); !strings.Contains(text, "writeback") {
		t.Errorf("caches of the kernel: %q", text)
	}
	p.through(id, "terminate-hard", "DONE")
	p.expect("the persistent image", p.sector(server.Dir, data.Source, 8), "1th data")
	p.expect("the image", p.sector(server.Dir, p.imageOf("boot").Source, 2), "0th boot")
	p.expect("the machine's volumes", p.ofMachine(id), "")
	p.expect("caches of the kernel", p.sh("dmsetup table --target cache"), "")
	p.reserved(0)
	for _, name := range []string{"boot", "data"} {
		p.deleteImage(name)
	}
}

// untouched is a sector of zeros of which the first byte was counted once.
const untouched = "\x01\x00\x00\x00\x00\x00\x00\x00"

// ofMachine are a machine's volumes, sorted.
func (p *product) ofMachine(id int) string {
	p.Helper()
	var names []string
	for name := range p.volumes() {
		if strings.HasPrefix(name, fmt.Sprintf("%d.", id)) {
			names = append(names, name)
		}
	}
	return sorted(names)
}

// sector is the beginning of a sector of an object.
func (p *product) sector(dir, object string, number int64) string {
	p.Helper()
	f, err := os.Open(filepath.Join(dir, object))
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, number*sectorSize); err != nil {
		p.Error(err)
	}
	return string(b)
}

// reserved waits until the server says that the host's machines take the MiB.
func (p *product) reserved(megabytes int) {
	p.Helper()
	p.eventually(fmt.Sprintf("%d MB are reserved", megabytes), func() error {
		h, err := p.client.Host(p.Context(), hostName)
		if err == nil && (h.UsedDiskMB != megabytes) {
			err = fmt.Errorf("the host has %d MB of disks", h.UsedDiskMB)
		}
		return err
	})
}
