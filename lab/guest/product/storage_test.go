package product

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"hayloft/lab/nfslab"
)

const (
	scratch = "scratch" // volume group of the host's local store
	images  = "images"  // volume group of the iSCSI server
)

// keep is what others have in the volume group of the host: one has a name as ours have them.
var keep = []string{"keep", "hayloft-hay-99.0"}

// group makes a volume group on a disk, with volumes of others, which must be untouched when the test ends.
func group(t *testing.T, name, disk string, others ...string) {
	t.Helper()
	sh(t, "vgcreate -qq -y "+name+" "+disk)
	t.Cleanup(func() { sh(t, "vgremove -qq -y -ff "+name+"; pvremove -qq -y -ff "+disk+"; wipefs -qa "+disk) })
	for _, other := range others {
		sh(t, fmt.Sprintf("lvcreate -qq -y -L 4m -n %s %s; seq 100000 | head -c 4m >/dev/%[2]s/%[1]s || true", other, name))
	}
	look := func() (list, content string) {
		return sh(t, "lvs --noheadings -o lv_name,lv_uuid,lv_size,lv_tags,lv_active "+name+" | sed 's/  */ /g'"), contents(t, name, others)
	}
	list, content := look()
	t.Cleanup(func() {
		after, now := look()
		if after != list {
			t.Errorf("volume group %s was\n%s\nand is\n%s", name, list, after)
		}
		if now != content {
			t.Errorf("volume group %s: the content of others changed", name)
		}
	})
}

func contents(t *testing.T, group string, volumes []string) string {
	t.Helper()
	var all strings.Builder
	for _, v := range volumes {
		b, err := os.ReadFile("/dev/" + group + "/" + v)
		if err != nil {
			t.Error(err)
		}
		all.Write(b)
	}
	return all.String()
}

// nas is an NFS export of the guest to itself, as BASE_PATH has it. It is the first of the guest's disks.
func nas(t *testing.T) (server *nfslab.Server, path string) {
	t.Helper()
	server = nfslab.Start(t, nfslab.Disk(t, "ext4"))
	t.Cleanup(func() { empty(t, server.Dir) })
	return server, "127.0.0.1:" + server.Dir
}

// empty checks that nothing is left in an export of which all images were deleted.
func empty(t *testing.T, dir string) {
	t.Helper()
	if left := sh(t, "cd "+dir+" && find . -mindepth 1 ! -name lost+found"); left != "" {
		t.Errorf("left in the export: %s", left)
	}
}

// san is an iSCSI target and initiator of the guest.
func san(t *testing.T, disk string, others ...string) {
	t.Helper()
	sh(t, "modprobe iscsi_tcp")
	group(t, images, disk, others...)
	daemon(t, "tgtd", "-f", "-t", "2")
	daemon(t, "iscsid", "-f")
	sh(t, "for i in $(seq 300); do tgtadm --op show --mode sys >/dev/null 2>&1 && iscsiadm -m session 2>&1 | grep -q 'No active' && exit; sleep 0.1; done; exit 1")
	t.Cleanup(func() {
		if left := sh(t, "tgtadm --op show --mode target; iscsiadm -m session 2>&1 | grep -v 'No active' || true"); left != "" {
			t.Errorf("left of iSCSI: %s", left)
		}
	})
}

// daemon runs a program until the test ends.
func daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, said.String())
		}
	})
}

// foreign is what the guest has that a product may make: mounts, device mapper's devices, loop devices, SCSI disks.
func (p *product) foreign() string {
	p.Helper()
	return p.sh("udevadm settle; cut -d' ' -f1-3 /proc/mounts; dmsetup ls | sort; losetup --list --noheadings --output NAME,BACK-FILE; ls -d /sys/block/sd* 2>/dev/null || true; ls -d /run/hayloft/nfs/*/ /dev/hayloft/* 2>/dev/null || true")
}

// nothingLeft checks that nothing of the product is there after its end.
func (p *product) nothingLeft() {
	p.Helper()
	p.atLast(func() error { // what udev has open goes when that has closed it
		if after := p.foreign(); after != p.before {
			return fmt.Errorf("before:\n%s\nafter:\n%s", p.before, after)
		}
		return nil
	})
	p.atLast(func() error {
		if left := p.sh("pgrep -fa '" + p.dir + "' | grep -v pgrep || true"); left != "" {
			return fmt.Errorf("left processes: %s", left)
		}
		return nil
	})
	if entries, err := os.ReadDir(p.dir + "/state"); !os.IsNotExist(err) {
		p.Errorf("left in the state directory: %v %v", entries, err)
	}
}

// atLast looks again for a while, and then tells what is wrong still.
func (p *product) atLast(look func() error) {
	p.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			p.Error(err)
			return
		}
	}
}

// volumes are those of ours in the host's group, by name, with their sizes in MiB.
func (p *product) volumes() map[string]string {
	p.Helper()
	found := map[string]string{}
	for line := range strings.Lines(p.sh("lvs --noheadings --units m --nosuffix -o lv_name,lv_size @hayloft.instance=" + instance)) {
		if fields := strings.Fields(line); len(fields) == 2 {
			found[strings.TrimPrefix(fields[0], "hayloft-"+instance+"-")] = strings.TrimSuffix(fields[1], ".00")
		}
	}
	return found
}

// noise is content that nothing makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	state := uint64(n)
	for i := range b {
		state = state*6364136223846793005 + 1442695040888963407
		b[i] = byte(state >> 56)
	}
	return b
}

func sorted(names []string) string {
	slices.Sort(names)
	return strings.Join(names, " ")
}
