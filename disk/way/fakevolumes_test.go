package way

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/export/loop"
	"hayloft/disk/localstore"
)

// fakeVolumes gives out files of a directory as volumes, in extents, and fails as the test says. What is on the disk is all
// that it knows, so it is as good after a restart.
type fakeVolumes struct {
	dir       string
	max       int64
	snapshots bool
	block     bool // by loop devices

	mu     sync.Mutex
	calls  []string
	failAt int             // the call to fail, counted from 1 and back to 0; 0: none
	open   map[string]bool // volumes that are in use
	raw    map[string]bool
	others map[string]bool // names that somebody else has
}

const (
	fakeExtent = 64 << 10
	loopTag    = "volume"
)

var _ localstore.Volumes = (*fakeVolumes)(nil)

func newFakeVolumes(t *testing.T, max int64, snapshots bool) *fakeVolumes {
	return &fakeVolumes{dir: t.TempDir(), max: max, snapshots: snapshots, open: map[string]bool{}, raw: map[string]bool{}}
}

func (f *fakeVolumes) called(what, name string) error {
	f.calls = append(f.calls, what+" "+name)
	if f.failAt > 0 {
		if f.failAt--; f.failAt == 0 {
			return fault.Errorf(fault.Unavailable, "the volumes fail in %s %s", what, name)
		}
	}
	if f.others[name] {
		return fault.Errorf(fault.Busy, "volume %s is not ours", name)
	}
	return nil
}

func (f *fakeVolumes) count(call string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, call) {
			n++
		}
	}
	return n
}

func (f *fakeVolumes) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fakeVolumes) used() (n int64) {
	list, _ := os.ReadDir(f.dir)
	for _, e := range list {
		if fi, err := e.Info(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

func (f *fakeVolumes) find(name string) (localstore.Volume, error) {
	fi, err := os.Stat(f.path(name))
	if err != nil {
		return localstore.Volume{}, fault.Errorf(fault.NotFound, "volume %s: there is none", name)
	}
	v := localstore.Volume{Name: name, Path: f.path(name), Size: fi.Size(), Taken: fi.Size()}
	if f.block {
		v.Block = true
		if v.Path, err = loop.Find(context.Background(), f.path(name), loopTag); fault.Is(err, fault.NotFound) {
			v.Path, err = loop.Attach(context.Background(), f.path(name), loop.Options{Tag: loopTag})
		}
	}
	return v, err
}

// detach has no loop device stand on a volume.
func (f *fakeVolumes) detach(name string) error {
	if !f.block {
		return nil
	}
	device, err := loop.Find(context.Background(), f.path(name), loopTag)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return loop.Detach(context.Background(), device, f.path(name), loopTag)
}

func (f *fakeVolumes) provision(s localstore.VolumeSpec) (localstore.Volume, error) {
	size, before := roundUp(s.Size, fakeExtent), int64(0)
	if f.raw[s.Name] && !s.Raw {
		if err := errors.Join(f.detach(s.Name), os.Remove(f.path(s.Name))); err != nil {
			return localstore.Volume{}, err
		}
		delete(f.raw, s.Name)
	}
	if v, err := f.find(s.Name); err == nil {
		before = v.Size
	}
	if free := f.max - f.used(); f.max > 0 && size-before > free {
		return localstore.Volume{}, fault.Errorf(fault.OutOfSpace, "volume %s: needs %d bytes, %d are free", s.Name, size-before, free)
	}
	file, err := os.OpenFile(f.path(s.Name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return localstore.Volume{}, err
	}
	defer file.Close()
	if size > before {
		err = file.Truncate(size)
	}
	if err == nil && s.Raw && before == 0 { // what a former tenant left
		_, err = file.WriteAt(bytes.Repeat([]byte("secret!"), int(s.Size)/7), 0)
		f.raw[s.Name] = true
	}
	if err != nil {
		return localstore.Volume{}, err
	}
	v, err := f.find(s.Name)
	if err == nil && v.Block && size > before {
		err = exec.Command("losetup", "-c", v.Path).Run()
	}
	if err == nil {
		err = own(v.Path, s.UID, s.GID)
	}
	v.Raw, v.Zeros = f.raw[s.Name], before == 0 && !s.Raw
	return v, err
}

func (f *fakeVolumes) Provision(_ context.Context, s localstore.VolumeSpec) (localstore.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Provision", s.Name); err != nil {
		return localstore.Volume{}, err
	}
	return f.provision(s)
}

func (f *fakeVolumes) Snapshot(_ context.Context, of string, s localstore.VolumeSpec) (localstore.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Snapshot", s.Name); err != nil {
		return localstore.Volume{}, err
	}
	if f.raw[of] {
		return localstore.Volume{}, fault.Errorf(fault.WrongState, "volume %s is not whole", of)
	}
	if !f.snapshots {
		return localstore.Volume{}, fault.Errorf(fault.Unsupported, "no snapshots")
	}
	src, err := os.Open(f.path(of))
	if err != nil {
		return localstore.Volume{}, err
	}
	defer src.Close()
	v, err := f.provision(s)
	if err != nil {
		return v, err
	}
	dst, err := os.OpenFile(v.Path, os.O_RDWR, 0)
	if err != nil {
		return v, err
	}
	defer dst.Close()
	_, err = io.Copy(dst, src)
	return v, err
}

func (f *fakeVolumes) Rename(_ context.Context, from, to string) (localstore.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Rename", to); err != nil {
		return localstore.Volume{}, err
	}
	if _, err := f.find(to); err == nil {
		return localstore.Volume{}, fault.Errorf(fault.Exists, "volume %s", to)
	}
	if err := errors.Join(f.detach(from), os.Rename(f.path(from), f.path(to))); err != nil {
		return localstore.Volume{}, err
	}
	delete(f.raw, from)
	return f.find(to)
}

func (f *fakeVolumes) Unprovision(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Unprovision", name); err != nil {
		return err
	}
	if f.open[name] {
		return fault.Errorf(fault.Busy, "volume %s: is open", name)
	}
	delete(f.raw, name)
	return errors.Join(f.detach(name), os.RemoveAll(f.path(name)))
}

func (f *fakeVolumes) Find(_ context.Context, name string) (localstore.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Find", name); err != nil {
		return localstore.Volume{}, err
	}
	return f.find(name)
}

func (f *fakeVolumes) List(context.Context) ([]localstore.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("List", ""); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	var list []localstore.Volume
	for _, e := range entries {
		if v, err := f.find(e.Name()); err == nil {
			list = append(list, v)
		}
	}
	return list, nil
}

func (f *fakeVolumes) Capacity(context.Context) (disk.Capacity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Capacity", ""); err != nil {
		return disk.Capacity{}, err
	}
	total := f.max
	if total == 0 {
		total = 1 << 40
	}
	return disk.Capacity{Total: total, Free: total - f.used(), Used: f.used()}, nil
}

// names of the volumes that there are.
func (f *fakeVolumes) names() []string {
	var names []string
	entries, _ := os.ReadDir(f.dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}
