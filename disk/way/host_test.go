package way

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/kernelcache"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/image"
	"hayloft/internal/command"
)

// bench is one host with one repository.
type bench struct {
	*testing.T
	way        *Way
	data       *fakeData // nil: daemon is the data path
	daemon     *blockd.Daemon
	open0      func(disk.Repository) (repository.Repository, error) // how the data path opens repositories
	repository disk.Repository
	root, run  string
	volumes    localstore.Volumes // nil: none
	kernel     *fakeKernel        // nil: none
	dmcache    kernelcache.Driver // a real one; nil: none
}

// service is the bench's data path.
func (b *bench) service() blockd.Service {
	if b.data != nil {
		return b.data
	}
	return b.daemon
}

func newBench(t *testing.T, max int64) *bench {
	t.Helper()
	b := &bench{T: t, root: filepath.Join(t.TempDir(), "ls"), run: t.TempDir(), open0: drivers.Open,
		repository: disk.Repository{ID: 1, Driver: "path", Path: t.TempDir()}}
	b.daemon = newDaemon(t, t.TempDir(), func(r disk.Repository) (repository.Repository, error) { return b.open0(r) })
	b.reopen(max)
	return b
}

// newDaemon is a data path in this process.
func newDaemon(t *testing.T, dir string, open func(disk.Repository) (repository.Repository, error)) *blockd.Daemon {
	t.Helper()
	d, err := blockd.New(blockd.Config{StateDir: dir, Log: slog.New(slog.DiscardHandler), Open: open, Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// newFakeBench is one whose data path does what the test says.
func newFakeBench(t *testing.T, max int64) *bench {
	t.Helper()
	b := &bench{T: t, root: filepath.Join(t.TempDir(), "ls"), run: t.TempDir(), data: newFake(),
		repository: disk.Repository{ID: 1, Driver: "path", Path: t.TempDir()}}
	b.reopen(max)
	return b
}

func (b *bench) reopen(max int64) {
	b.Helper()
	c := Config{Root: b.root, Max: max, Runner: command.Exec{}, Log: slog.New(slog.DiscardHandler), GID: os.Getgid(), Host: "here",
		Data: b.service(), Sockets: filepath.Join(b.run, "s"), Volumes: b.volumes}
	if b.kernel != nil {
		c.Kernel, c.KernelName = b.kernel, "fake"
	}
	if b.dmcache != nil {
		c.Kernel, c.KernelName = b.dmcache, "dm-cache"
	}
	w, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	if b.data != nil {
		w.leaving = time.Millisecond
	}
	if b.kernel != nil {
		w.blocks = files{}
	}
	b.way = w
}

func (b *bench) open() repository.Repository {
	b.Helper()
	r, err := drivers.Open(b.repository)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

func (b *bench) add(name string, content []byte) *disk.Image {
	b.Helper()
	file := filepath.Join(b.TempDir(), "source")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		b.Fatal(err)
	}
	info, err := image.Import(b.Context(), image.ImportOptions{Source: file, Type: image.OS, To: b.open(), Name: name})
	if err != nil {
		b.Fatal(err)
	}
	return &disk.Image{ID: 5, Name: name, Repository: b.repository, Source: name, Format: string(info.Format), Digest: info.Digest, Size: info.ObjectSize}
}

func (b *bench) dir(machine int) string { return filepath.Join(b.run, fmt.Sprint(machine)) }

// request is one with the server's default for PRELOAD_SIZE, unless a disk has one.
func (b *bench) request(machine int, disks ...disk.Spec) disk.Request {
	for i := range disks {
		if disks[i].Preload == 0 {
			disks[i].Preload = disk.PreloadAuto
		}
	}
	return disk.Request{Machine: machine, Dir: b.dir(machine), UID: os.Getuid(), GID: os.Getgid(), Disks: disks}
}

func (b *bench) prepare(r disk.Request) disk.Prepared {
	b.Helper()
	p, err := b.way.Prepare(b.Context(), r, nil)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// patience ends what would hang, and never what is only slow.
const patience = 2 * time.Minute

// eventually waits for what is to happen soon.
func (b *bench) eventually(what string, happened func() bool) {
	b.Helper()
	for limit := time.Now().Add(patience); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			b.Fatalf("never: %s", what)
		}
	}
}

// unused waits until nobody has an export open: the data path hears of those who have gone a moment later.
func (b *bench) unused() {
	b.Helper()
	b.eventually("no connections to exports", func() bool {
		s, err := b.service().Status(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return !slices.ContainsFunc(s.Exports, func(e blockd.ExportStatus) bool { return e.Connections > 0 })
	})
}

// nothing fails the test when a machine, or a part of a base, is left.
func (b *bench) nothing() {
	b.Helper()
	if m, err := b.way.Machines(b.Context()); err != nil || len(m) != 0 {
		b.Errorf("machines %v, %v", m, err)
	}
	if e, _ := os.ReadDir(b.run); len(e) != 0 {
		b.Errorf("left in the machines' directory: %v", e)
	}
	if s, err := b.service().Status(b.Context()); err != nil || len(s.Exports) != 0 {
		b.Errorf("exports left: %v, %v", s.Exports, err)
	}
	_ = filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".part") {
			b.Errorf("left: %s", path)
		}
		return nil
	})
}

func (b *bench) noBase() {
	b.Helper()
	b.nothing()
	if e, _ := os.ReadDir(filepath.Join(b.root, "base")); len(e) != 0 {
		b.Errorf("base left: %v", e)
	}
}

func noise(n int, seed uint32) []byte {
	b := make([]byte, n)
	x := seed*2 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func diskContent() []byte {
	return append(append(noise(1<<20, 1), make([]byte, 3<<20)...), noise(500_000, 2)...)
}

func qemuIO(t *testing.T, path, format string, commands ...string) {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, path)...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("verification failed")) {
		t.Fatalf("qemu-io %v: %v\n%s", commands, err, out)
	}
}

func tarFile(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Size: size, Mode: 0o644, Typeflag: tar.TypeReg}
}
