package way

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/localstore/file"
	"hayloft/image"
	"hayloft/lab/labtest"
)

const (
	testUID = 64101
	testGID = 64102
)

func owner(t *testing.T, path string) (uid, gid, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid, st.Gid, st.Mode & 0o7777
}

// TestMachinesDiskIsItsOwn: QEMU under the machine's user reads and writes its overlay, reads the base, and
// another machine's user reaches neither.
func TestMachinesDiskIsItsOwn(t *testing.T) {
	labtest.Root(t, "qemu-io", "setpriv")
	b := newBench(t, 0)
	open, err := os.MkdirTemp("", "hayloft-way-") // t.TempDir is closed to other users above
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(open)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	b.root, b.run = open+"/ls", open+"/run"
	if err := os.Mkdir(b.run, 0o755); err != nil {
		t.Fatal(err)
	}
	b.way, err = New(Config{Root: b.root, GID: testGID, Host: "here", Log: slog.New(slog.DiscardHandler), Data: b.service()})
	if err != nil {
		t.Fatal(err)
	}
	img := b.add("tiny", bytes.Repeat([]byte{7}, 1<<20))
	r := b.request(1, disk.Spec{Image: img, Size: 2 << 20}, disk.Spec{ID: 1, Image: img, ReadOnly: true})
	r.UID, r.GID = testUID, testGID
	p := b.prepare(r)
	if u, g, m := owner(t, p.Devices[0].Path); u != testUID || g != testGID || m != 0o600 {
		t.Errorf("overlay %d:%d %o", u, g, m)
	}
	if u, g, m := owner(t, p.Devices[1].Path); u != 0 || g != testGID || m != 0o440 {
		t.Errorf("base %d:%d %o", u, g, m)
	}
	as := func(uid, gid string, args ...string) (string, error) {
		out, err := exec.Command("setpriv", append([]string{"--reuid", uid, "--regid", gid, "--clear-groups"}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := as("64101", "64102", "qemu-io", "-f", "qcow2", "-c", "read -P 7 0 1M", "-c", "read -P 0 1M 1M", "-c", "write -P 9 64k 64k",
		"-c", "read -P 9 64k 64k", p.Devices[0].Path); err != nil || strings.Contains(out, "failed") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, path := range []string{p.Devices[0].Path, p.Devices[1].Path} {
		if _, err := as("64109", "64109", "cat", path); err == nil {
			t.Errorf("a stranger reads %s", path)
		}
	}
	if _, err := as("64101", "64102", "dd", "if=/dev/zero", "count=1", "conv=notrunc", "of="+p.Devices[1].Path); err == nil {
		t.Error("the base can be written to")
	}
}

func TestSavedDiskDeploysAgain(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	b := newBench(t, 0)
	img := b.add("tiny", bytes.Repeat([]byte{7}, 1<<20))
	spec := disk.Spec{Image: img, Size: 3 << 20}
	p := b.prepare(b.request(1, spec))
	qemuIO(t, p.Devices[0].Path, "qcow2", "write -P 9 64k 64k", "write -P 8 2M 100k", "write -z 512k 64k", "write -P 7 768k 64k")
	saved, err := b.way.SaveAs(t.Context(), 1, b.dir(1), spec, b.repository, "saved", nil)
	if err != nil || saved.Size != 3<<20 || saved.Format != "raw" {
		t.Fatal(saved, err)
	}
	// The chunk written with what was there is not moved, the one of zeros is.
	if saved.Moved != 4*image.ChunkSize || saved.Clone == "" {
		t.Errorf("moved %d bytes, clone %q", saved.Moved, saved.Clone)
	}
	q := b.prepare(b.request(2, disk.Spec{Image: &disk.Image{ID: 6, Name: "saved", Repository: b.repository, Source: "saved", Format: "raw", Digest: saved.Digest, Size: saved.Size}}))
	qemuIO(t, q.Devices[0].Path, "qcow2", "read -P 7 0 64k", "read -P 9 64k 64k", "read -P 7 128k 384k", "read -P 0 512k 64k", "read -P 7 576k 448k", "read -P 0 1M 1M", "read -P 8 2M 100k")
	for _, name := range []string{"a/b", "a\nb", "x.idx"} {
		if _, err := b.way.SaveAs(t.Context(), 1, b.dir(1), spec, b.repository, name, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := b.way.SaveAs(t.Context(), 1, b.dir(1), disk.Spec{ID: 9}, b.repository, "none", nil); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := b.way.Resize(t.Context(), 1, b.dir(1), 0, 5<<20); err != nil {
		t.Fatal(err)
	}
	if o, err := readOverlay(p.Devices[0].Path); err != nil || o.Size != 5<<20 {
		t.Error(o, err)
	}
	if err := b.way.Resize(t.Context(), 1, b.dir(1), 0, 4<<20); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// TestStashMovesToAnotherHost takes a machine with each kind of disk to a host with another local store.
func TestStashMovesToAnotherHost(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	for _, linked := range []bool{true, false} {
		b := newBench(t, 0)
		if !linked {
			b.run = tmpfs(t, "64m")
		}
		img := b.add("tiny", bytes.Repeat([]byte{7}, 1<<20))
		mine := b.add("mine", noise(4096, 1))
		mine.Persistent = true
		root := b.add("root", tarGz(t, tarFile("etc/motd", 5)))
		specs := []disk.Spec{{Image: img}, {ID: 1, Volatile: "fs", Size: 1 << 20}, {ID: 2, Image: mine}, {ID: 3, Image: root, Tree: true}, {ID: 4, Image: img, ReadOnly: true}}
		r := b.request(1, specs...)
		p := b.prepare(r)
		qemuIO(t, p.Devices[0].Path, "qcow2", "write -P 9 64k 64k")
		qemuIO(t, p.Devices[1].Path, "raw", "write -P 5 64k 64k")
		upper := p.Devices[3].Upper
		if err := errors.Join(os.WriteFile(upper+"/f", []byte("f"), 0o640), unix.Mknod(upper+"/gone", unix.S_IFCHR, 0)); err != nil {
			t.Fatal(err)
		}
		memory := b.dir(1) + "/memory"
		if err := os.WriteFile(memory, []byte("saved memory"), 0o600); err != nil {
			t.Fatal(err)
		}
		// The first try finds the repository gone: the machine stays whole here.
		gone := b.repository
		gone.Path += "/gone"
		if err := b.way.Stash(t.Context(), 1, b.dir(1), []string{memory}, gone); !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
		qemuIO(t, p.Devices[0].Path, "qcow2", "read -P 9 64k 64k")
		for range 2 {
			if err := b.way.Stash(t.Context(), 1, b.dir(1), []string{memory}, b.repository); err != nil {
				t.Fatal(err)
			}
		}
		b.nothing()

		other := newBench(t, 0)
		other.repository = b.repository
		r.Dir = other.dir(1)
		for range 2 {
			back, err := other.way.Unstash(t.Context(), r, b.repository, nil)
			if err != nil {
				t.Fatal(err)
			}
			if base := back.Devices[4].Path; !strings.HasPrefix(base, other.root) {
				t.Errorf("base at %s", base)
			}
			qemuIO(t, back.Devices[0].Path, "qcow2", "read -P 9 64k 64k", "read -P 7 128k 64k")
			qemuIO(t, back.Devices[1].Path, "raw", "read -P 5 64k 64k")
			if got, err := os.ReadFile(back.Devices[3].Upper + "/f"); string(got) != "f" {
				t.Error(err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(back.Devices[3].Upper+"/gone", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
				t.Error("whiteout lost", err)
			}
			if got, err := os.ReadFile(other.dir(1) + "/memory"); string(got) != "saved memory" {
				t.Error(err)
			}
		}
		for range 2 {
			if err := other.way.DropStash(t.Context(), 1, b.repository); err != nil {
				t.Error(err)
			}
		}
		if e, err := os.ReadDir(b.repository.Path + "/machines"); err == nil {
			t.Errorf("stash left: %v", e)
		}
		if _, err := b.way.Unstash(t.Context(), r, b.repository, nil); !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
	}
}

// tmpfs mounts one of its own for the test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("hayloft-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { labtest.Unmount(t, dir) })
	return dir
}

func TestDiskFull(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	b := newBench(t, 0)
	full := tmpfs(t, "4m")
	img := b.add("tiny", noise(6<<20, 1))
	b.root = full + "/ls"
	b.reopen(0)
	_, err := b.way.Prepare(t.Context(), b.request(1, disk.Spec{Image: img}), nil)
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "needs 6291456 bytes on the local store") {
		t.Errorf("known before: %v", err)
	}
	b.noBase()
	// Somebody else takes the space while we copy: the reservation saw enough.
	store, err := file.Open(file.Config{Root: b.root, Log: slog.New(slog.DiscardHandler), Statfs: func(_ string, st *unix.Statfs_t) error {
		st.Bsize, st.Blocks, st.Bavail, st.Bfree = 1, 1<<30, 1<<30, 1<<30
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	b.way.store = store
	_, err = b.way.Prepare(t.Context(), b.request(1, disk.Spec{Image: img}), nil)
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "image 5 (tiny)") {
		t.Errorf("in the middle: %v", err)
	}
	b.nothing() // verified chunks stay, counted, until somebody needs their room
	tree := b.add("root", tarGz(t, tarFile("big", 6<<20)))
	_, err = b.way.Prepare(t.Context(), b.request(1, disk.Spec{Image: tree, Tree: true}), nil)
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), `member "big"`) {
		t.Errorf("tree: %v", err)
	}
	b.nothing()

	// The repository runs full while a disk is saved.
	c := newBench(t, 0)
	img = c.add("tiny", noise(6<<20, 1))
	c.prepare(c.request(1, disk.Spec{Image: img}, disk.Spec{ID: 1, Image: img, ReadOnly: true}))
	to := disk.Repository{ID: 2, Driver: "path", Path: tmpfs(t, "4m")}
	for id := range 2 {
		if _, err := c.way.SaveAs(t.Context(), 1, c.dir(1), disk.Spec{ID: id}, to, "saved", nil); !fault.Is(err, fault.OutOfSpace) {
			t.Errorf("save of disk %d: %v", id, err)
		}
	}
	if e, _ := os.ReadDir(to.Path); len(e) != 0 {
		t.Errorf("left in the repository: %v", e)
	}
}

func TestVolatileFileSystems(t *testing.T) {
	labtest.Root(t, "mkfs.ext4", "mkswap")
	b := newBench(t, 0)
	p := b.prepare(b.request(1, disk.Spec{ID: 0, Volatile: "fs", FS: "ext4", Size: 8 << 20}, disk.Spec{ID: 1, Volatile: "swap", Size: 1 << 20}))
	for i, want := range []struct {
		offset int64
		magic  string
	}{{0x438, "\x53\xef"}, {4086, "SWAPSPACE2"}} {
		f, err := os.Open(p.Devices[i].Path)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want.magic))
		_, err = f.ReadAt(got, want.offset)
		f.Close()
		if err != nil || string(got) != want.magic || p.Devices[i].Kind != device.File || p.Devices[i].Format != device.Raw {
			t.Errorf("disk %d: %q %v", i, got, err)
		}
	}
	_, err := b.way.Prepare(t.Context(), b.request(2, disk.Spec{ID: 0, Volatile: "fs", FS: "ext4 -x; rm", Size: 8 << 20}), nil)
	if !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
	_, err = b.way.Prepare(t.Context(), b.request(2, disk.Spec{ID: 0, Volatile: "swap", Size: 512}), nil)
	if err == nil || !strings.Contains(err.Error(), "disk 0: mkswap: ") {
		t.Error(err)
	}
	if m, _ := b.way.Machines(t.Context()); len(m) != 1 {
		t.Errorf("%v", m)
	}
}

func TestSquashFSTree(t *testing.T) {
	labtest.Root(t, "mksquashfs", "unsquashfs")
	b := newBench(t, 0)
	src := t.TempDir()
	if err := errors.Join(os.Mkdir(src+"/bin", 0o755), os.WriteFile(src+"/bin/su", []byte("su"), 0o755), os.Chown(src+"/bin/su", 12, 34),
		os.Chmod(src+"/bin/su", 0o755|os.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(t.TempDir(), "s")
	if out, err := exec.Command("mksquashfs", src, packed, "-noappend", "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	content, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	img := b.add("root", content)
	if img.Format != string(image.SquashFS) {
		t.Fatal(img.Format)
	}
	d := b.prepare(b.request(1, disk.Spec{Image: img, Tree: true})).Devices[0]
	if u, g, m := owner(t, d.Lower+"/bin/su"); u != 12 || g != 34 || m != 0o4755 {
		t.Errorf("%d:%d %o", u, g, m)
	}
	if _, _, m := owner(t, filepath.Dir(d.Lower)); m != 0o700 {
		t.Errorf("setuid programs of a tree are open to the host: %o", m)
	}
	b.reopen(0)
	if again := b.prepare(b.request(2, disk.Spec{Image: img, Tree: true})); again.RepositoryBytes != 0 {
		t.Errorf("read %d again", again.RepositoryBytes)
	}
}
