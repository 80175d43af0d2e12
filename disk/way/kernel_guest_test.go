package way

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/dmcache"
	"hayloft/disk/localstore"
	"hayloft/lab/labtest"
)

// TestGuestDMCacheOnLVM: a persistent image in BACK, with its cache in a logical volume, over a restart of the host.
func TestGuestDMCacheOnLVM(t *testing.T) {
	labtest.Guest(t)
	began := time.Now()
	step := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	run(t, "modprobe", "loop", "max_loop=0") // hosts have its control device from the start
	t.Cleanup(func() { run(t, "modprobe", "-r", "loop") })
	b := onLVM(t, localstore.Thick)
	driver, err := dmcache.New(kernelcache.Config{Instance: "way", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b.dmcache = driver
	b.repository.Options = map[string]string{UnorderedBack: "YES"}
	b.reopen(0)
	content := noise(8<<20, 4)
	img := b.add("mine", content)
	img.Persistent = true
	r := b.request(1, disk.Spec{Image: img, Mode: string(cache.Back), CacheSize: 32 << 20})
	r.UID, r.GID = testUID, testGID
	d := b.prepare(r).Devices[0]
	if uid, gid, mode := owner(t, d.Path); d.Kind != device.Block || uid != testUID || gid != testGID || mode&0o077 != 0 {
		t.Errorf("%+v of %d:%d, mode %o", d, uid, gid, mode)
	}
	step("prepared")
	if !b.markOf("mine").Undrained {
		t.Error("not marked")
	}
	write := func(pattern byte, at int64) {
		t.Helper()
		qemuIO(t, d.Path, "raw", fmt.Sprintf("write -P %d %d 64k", pattern, at), "flush")
		copy(content[at:], bytes.Repeat([]byte{pattern}, 64<<10))
	}
	for range 4 { // what is written once does not seem worth keeping
		write(1, 1<<20)
	}
	caches, err := b.way.Caches(t.Context(), 1)
	if err != nil || len(caches) != 1 || caches[0].Mode != "BACK" || caches[0].Total != 8<<20 || caches[0].Error != "" {
		t.Errorf("%+v %v", caches, err)
	}

	// The host is started anew: the kernel has none of it.
	for _, name := range []string{"way-1.0", "way-1.0-meta", "way-1.0-data"} {
		run(t, "dmsetup", "remove", name)
	}
	run(t, "vgchange", "-an", guestGroup)
	source := filepath.Join(b.repository.Path, "mine")
	if err := (loops{}).detach(t.Context(), source, sourceTag("1.0")); err != nil {
		t.Error(err)
	}
	step("host down")
	b.volumes = b.openLVM(localstore.Thick)
	b.reopen(0)
	d = b.prepare(r).Devices[0]
	qemuIO(t, d.Path, "raw", "read -P 1 1M 64k")
	step("prepared again")
	if err := b.way.Settle(t.Context(), 1, false, nil); err != nil {
		t.Error(err)
	}
	if got := readFile(t, source); !bytes.Equal(got, content) {
		t.Error("settled, and the image lacks something")
	}
	if b.markOf("mine").Undrained {
		t.Error("settled, and still marked")
	}
	step("settled")
	d = b.prepare(r).Devices[0]
	write(2, 3<<20)
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	if got := readFile(t, source); !bytes.Equal(got, content) {
		t.Error("removed, and the image lacks something")
	}
	b.nothing()
	if left := b.ofMachines(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left := run(t, "dmsetup", "ls"); strings.Contains(left, "way-") {
		t.Errorf("left: %s", left)
	}
	step("removed")
}
