// Package volumestest is the suite that every driver of volumes passes.
package volumestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
)

// Place is where a driver's volumes are in a test: empty at first, and of Units units at least.
type Place struct {
	// Open opens the store as a process does that starts: what is there stays. max is LS_MAX in bytes, 0 none.
	Open func(t *testing.T, max int64) localstore.Volumes
	// None says that the driver provisions nothing.
	None bool
	// Unit is a size in bytes that the driver does not round up; there is space for Units of them, no more than 4 times that.
	Unit  int64
	Units int
	// Crowd is how many are provisioned at once, 0: 50.
	Crowd int
	// Snapshots says that it has them.
	Snapshots bool
	// Foreign puts something of somebody else's where the volume of that name would be; check says whether it was touched.
	Foreign func(t *testing.T, name string) (check func() error)
	// HalfMade leaves what a dead maker of a volume leaves.
	HalfMade func(t *testing.T, name string, size int64)
	// Reboot does to what is there what a reboot of the host does; may be nil.
	Reboot func(t *testing.T)
	// Hold opens the volume as a machine does; nil: by opening its path.
	Hold func(t *testing.T, v localstore.Volume) (release func())
}

type suite struct {
	*Place
	testing.TB
	t     *testing.T
	store localstore.Volumes
}

// Run runs the whole suite on a place.
func Run(t *testing.T, p Place) {
	if p.None {
		t.Run("none", func(t *testing.T) { none(t, p.Open(t, 0)) })
		return
	}
	Life(t, p)
	Space(t, p)
	Copies(t, p)
}

// Life is the part of the suite about single volumes.
func Life(t *testing.T, p Place) {
	run(t, p, []part{
		{"zeros though others wrote there", zeros},
		{"again is the same", again},
		{"longer", longer},
		{"names and sizes", refused},
		{"owner", owner},
		{"foreign", foreign},
		{"half made", halfMade},
		{"open", open},
		{"restart", restart},
		{"not there", notThere},
		{"ended context", ended},
	})
}

// Space is the part of the suite about space, and who wants it at once.
func Space(t *testing.T, p Place) {
	run(t, p, []part{
		{"LS_MAX", most},
		{"LS_MAX by two processes at once", mostOfTwo},
		{"full", full},
		{"many at once", crowd},
		{"one name at once", sameName},
	})
}

// Copies is the part of the suite about what volumes come from.
func Copies(t *testing.T, p Place) {
	run(t, p, []part{{"snapshots", snapshots}, {"rename", rename}, {"raw", raw}})
}

type part struct {
	name string
	run  func(suite)
}

func run(t *testing.T, p Place, parts []part) {
	if p.Hold == nil {
		p.Hold = hold
	}
	if p.Crowd == 0 {
		p.Crowd = 50
	}
	store := p.Open(t, 0)
	whole := suite{Place: &p, TB: t, t: t, store: store}
	before := whole.free()
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) {
			s := suite{Place: &p, TB: t, t: t, store: store}
			defer s.clean()
			part.run(s)
		})
	}
	if free := whole.free(); free < before {
		t.Errorf("%d bytes did not come back", before-free)
	}
}

func none(t *testing.T, store localstore.Volumes) {
	ctx := t.Context()
	_, err := store.Provision(ctx, sized("1.0", 1<<20))
	class(t, "provision", err, fault.Unsupported)
	_, err = store.Snapshot(ctx, "1.0", sized("1.1", 1<<20))
	class(t, "snapshot", err, fault.Unsupported)
	_, err = store.Find(ctx, "1.0")
	class(t, "find", err, fault.NotFound)
	_, err = store.Rename(ctx, "1.0", "1.1")
	class(t, "rename", err, fault.NotFound)
	if err := store.Unprovision(ctx, "1.0"); err != nil {
		t.Error(err)
	}
	if list, err := store.List(ctx); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	if c, err := store.Capacity(ctx); err != nil || c.Free != 0 || c.Total != 0 || c.Used != 0 {
		t.Error(c, err)
	}
}

// clean removes all volumes.
func (s suite) clean() {
	s.Helper()
	ctx := context.WithoutCancel(s.Context())
	list := s.list()
	if _, err := parallel(len(list), func(i int) error { return s.store.Unprovision(ctx, list[i].Name) }); err != nil {
		s.Error(err)
	}
}

func (s suite) free() int64 {
	s.Helper()
	c, err := s.store.Capacity(context.WithoutCancel(s.Context()))
	if err != nil {
		s.Fatal(err)
	}
	return c.Free
}

func (s suite) list() []localstore.Volume {
	s.Helper()
	list, err := s.store.List(context.WithoutCancel(s.Context()))
	if err != nil {
		s.Fatal(err)
	}
	return list
}

// names of what is there.
func (s suite) names() string {
	s.Helper()
	var all []string
	for _, v := range s.list() {
		all = append(all, v.Name)
	}
	return strings.Join(all, " ")
}

func (s suite) spec(name string, units int64) localstore.VolumeSpec { return sized(name, units*s.Unit) }

func sized(name string, size int64) localstore.VolumeSpec {
	return localstore.VolumeSpec{Name: name, Size: size, UID: os.Geteuid(), GID: os.Getegid()}
}

func (s suite) provision(v localstore.VolumeSpec) localstore.Volume {
	s.Helper()
	got, err := s.store.Provision(s.Context(), v)
	if err != nil {
		s.Fatal(err)
	}
	if got.Name != v.Name || got.Size < v.Size {
		s.Fatalf("asked for %+v, got %+v", v, got)
	}
	return got
}

func class(t testing.TB, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

// refusal checks class and that name and cause are in the text.
func refusal(t testing.TB, err error, want fault.Class, texts ...string) {
	t.Helper()
	class(t, "refusal", err, want)
	for _, text := range texts {
		if err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}

// fill writes a byte all over and makes it durable.
func (s suite) fill(v localstore.Volume, b byte, from, to int64) {
	s.Helper()
	f, err := os.OpenFile(v.Path, os.O_RDWR, 0)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte{b}, 1<<20)
	for at := from; at < to; at += int64(len(block)) {
		if _, err := f.WriteAt(block[:min(int64(len(block)), to-at)], at); err != nil {
			s.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		s.Fatal(err)
	}
}

// holds checks that bytes [from, to) are all b, and that the device is as long as it says.
func (s suite) holds(v localstore.Volume, b byte, from, to int64) {
	s.Helper()
	f, err := os.Open(v.Path)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end != v.Size {
		s.Fatalf("%s is %d bytes long, not %d: %v", v.Path, end, v.Size, err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		s.Fatal(err)
	}
	want, block := bytes.Repeat([]byte{b}, 1<<20), make([]byte, 1<<20)
	for at := from; at < to; at += int64(len(block)) {
		n := min(int64(len(block)), to-at)
		if _, err := f.ReadAt(block[:n], at); err != nil {
			s.Fatal(err)
		}
		if !bytes.Equal(block[:n], want[:n]) {
			i := 0
			for block[i] == b {
				i++
			}
			s.Fatalf("%s: byte %d is %#x, not %#x", v.Name, at+int64(i), block[i], b)
		}
	}
}

func hold(t *testing.T, v localstore.Volume) func() {
	t.Helper()
	f, err := os.OpenFile(v.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// parallel runs n at once and returns how many ended well, and the errors of the rest.
func parallel(n int, do func(i int) error) (int, error) {
	var (
		wg   sync.WaitGroup
		well atomic.Int32
		errs = make([]error, n)
	)
	for i := range n {
		wg.Go(func() {
			if errs[i] = do(i); errs[i] == nil {
				well.Add(1)
			}
		})
	}
	wg.Wait()
	return int(well.Load()), errors.Join(errs...)
}

func name(i int) string { return fmt.Sprintf("%d.0", i) }
