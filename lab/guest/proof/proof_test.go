package proof

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// sh runs a shell script, which ends at the first command that fails, and returns its output.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := (command.Exec{}).Run(t.Context(), command.Cmd{Name: "/bin/sh", Args: []string{"-ec", script}})
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// later runs a script at the end of the test, in a context that still works.
func later(t *testing.T, script string) {
	t.Helper()
	t.Cleanup(func() {
		if out, err := (command.Exec{}).Run(noContext(), command.Cmd{Name: "/bin/sh", Args: []string{"-c", script}}); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	})
}

func TestGuestLVM(t *testing.T) {
	labtest.Guest(t)
	disks := labtest.Disks(t, 2)
	sh(t, "vgcreate -qq vg "+strings.Join(disks, " "))
	later(t, "vgremove -qq -y vg; pvremove -qq "+strings.Join(disks, " "))
	sh(t, "lvcreate -qq -L 64M -n thick vg && lvcreate -qq -L 256M -T vg/pool && lvcreate -qq -V 512M -T vg/pool -n thin")
	content := bytes.Repeat([]byte("hayloft "), 1<<17)
	if err := os.WriteFile("/dev/vg/thin", content, 0); err != nil {
		t.Fatal(err)
	}
	sh(t, "lvcreate -qq -s -n snap vg/thin && lvchange -qq -ay -K vg/snap && lvcreate -qq -s -L 16M -n thicksnap vg/thick")
	if err := os.WriteFile("/dev/vg/thin", make([]byte, len(content)), 0); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/dev/vg/snap")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got := make([]byte, len(content))
	if _, err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a thin snapshot changed with its origin (%v)", err)
	}
	if got := sh(t, "lvs --noheadings -o lv_name,segtype vg | awk '{print $1 \"=\" $2}' | sort | tr '\\n' ' '"); got != "pool=thin-pool snap=thin thick=linear thicksnap=linear thin=thin" {
		t.Errorf("volumes %q", got)
	}
}

func TestGuestDMCache(t *testing.T) {
	labtest.Guest(t)
	disks := labtest.Disks(t, 2)
	sh(t, "vgcreate -qq vg "+strings.Join(disks, " "))
	later(t, "vgremove -qq -y vg; pvremove -qq "+strings.Join(disks, " "))
	sh(t, "lvcreate -qq -L 128M -n slow vg "+disks[0]+" && lvcreate -qq -L 32M -n fast vg "+disks[1])
	sh(t, "lvconvert -qq -y --type cache --cachemode writeback --cachevol fast vg/slow && dd if=/dev/zero of=/dev/vg/slow bs=1M count=8 oflag=direct status=none")
	if table := sh(t, "dmsetup table vg-slow"); !strings.Contains(table, " cache ") || !strings.Contains(table, "writeback") {
		t.Errorf("table %q", table)
	}
	sh(t, "lvconvert -qq -y --splitcache vg/slow")
}

func TestGuestBcache(t *testing.T) {
	labtest.Guest(t)
	disks := labtest.Disks(t, 2)
	sh(t, "modprobe bcache && make-bcache -C "+disks[0]+" -B "+disks[1]+" >/dev/null && udevadm settle")
	const wait = `for i in $(seq 100); do [ ! -e /sys/block/bcache0 ] || break; sleep 0.1; done; test -b /dev/bcache0; `
	later(t, `echo 1 >/sys/block/bcache0/bcache/stop; for f in /sys/fs/bcache/*-*/unregister; do echo 1 >$f; done
		for i in $(seq 100); do [ -e /sys/block/bcache0 ] || [ -e "$(echo /sys/fs/bcache/*-*)" ] || exit 0; sleep 0.1; done; exit 1`)
	sh(t, wait+"echo writeback >/sys/block/bcache0/bcache/cache_mode; dd if=/dev/zero of=/dev/bcache0 bs=1M count=4 oflag=direct status=none")
	if mode := sh(t, "cat /sys/block/bcache0/bcache/cache_mode"); !strings.Contains(mode, "[writeback]") {
		t.Errorf("cache mode %q", mode)
	}
}

func TestGuestNFS(t *testing.T) {
	labtest.Guest(t)
	sh(t, "mkdir -p /work/export /work/mounted && modprobe nfsd && mount -t nfsd nfsd /proc/fs/nfsd 2>/dev/null || grep -q nfsd /proc/mounts")
	later(t, "umount /work/mounted; rpc.nfsd 0; exportfs -ua; rm -r /work/export")
	sh(t, `exportfs -o rw,no_root_squash,insecure,fsid=0 127.0.0.1:/work/export && rpc.mountd -N 3 -V 4 && rpc.nfsd -N 3 -V 4 -U 1 && mount -t nfs4 127.0.0.1:/ /work/mounted`)
	later(t, "kill $(pidof rpc.mountd)")
	if err := os.WriteFile("/work/mounted/hello", []byte("there"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile("/work/export/hello"); string(got) != "there" {
		t.Errorf("on the server: %q, %v", got, err)
	}
}

func TestGuestISCSI(t *testing.T) {
	labtest.Guest(t)
	const iqn = "iqn.2026-01.hayloft:proof"
	file := filepath.Join(t.TempDir(), "lun")
	sh(t, "truncate -s 32M "+file+" && tgtd && for i in $(seq 50); do tgtadm --op show --mode sys >/dev/null 2>&1 && break; sleep 0.1; done")
	later(t, "tgtadm --op delete --force --mode target --tid 1; tgtadm --op delete --mode system")
	sh(t, "tgtadm --op new --mode target --tid 1 -T "+iqn+" && tgtadm --op new --mode logicalunit --tid 1 --lun 1 -b "+file+" && tgtadm --op bind --mode target --tid 1 -I ALL")
	sh(t, "modprobe iscsi_tcp && iscsid && iscsiadm -m discovery -t sendtargets -p 127.0.0.1 >/dev/null && iscsiadm -m node -T "+iqn+" --login >/dev/null && udevadm settle")
	later(t, "iscsiadm -m node -T "+iqn+" --logout >/dev/null; iscsiadm -m node -T "+iqn+" -o delete; iscsiadm -k 0")
	disk := sh(t, "ls /dev/disk/by-path/ip-127.0.0.1:3260-iscsi-"+iqn+"-lun-1")
	sh(t, "echo through the kernel >"+disk+" && sync "+disk)
	if got, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(got, []byte("through the kernel")) {
		t.Errorf("on the target: %.20q, %v", got, err)
	}
}

func TestGuestReflink(t *testing.T) {
	labtest.Guest(t)
	disk := labtest.Disks(t, 1)[0]
	for kind, mkfs := range map[string]string{"xfs": "mkfs.xfs -q -f -m reflink=1 ", "btrfs": "mkfs.btrfs -q -f "} {
		t.Run(kind, func(t *testing.T) {
			sh(t, mkfs+disk+" && mkdir -p /work/fs && mount -t "+kind+" "+disk+" /work/fs")
			later(t, "umount /work/fs && wipefs -qa "+disk)
			sh(t, "dd if=/dev/urandom of=/work/fs/a bs=1M count=2 status=none && cp --reflink=always /work/fs/a /work/fs/b && cmp /work/fs/a /work/fs/b")
		})
	}
}

func TestGuestHasTheClientsOfCeph(t *testing.T) {
	labtest.Guest(t)
	sh(t, "modprobe rbd && modprobe nbd && rbd --version && qemu-img --version && xfs_info -V && btrfs --version && ssh -V 2>&1")
}
