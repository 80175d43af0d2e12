package way

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/export/loop"
	"hayloft/disk/repository"
	"hayloft/lab/labtest"
)

// mapping is a repository whose persistent images become block devices of this host, as LUNs and RBD images do.
type mapping struct {
	remote
	path string
}

func (m mapping) Own(ctx context.Context, name string, o repository.Owner, uid, gid int) (string, error) {
	if _, err := m.Writable.Own(ctx, name, o, os.Geteuid(), os.Getegid()); err != nil {
		return "", err
	}
	file := filepath.Join(m.path, name)
	path, err := loop.Find(ctx, file, loopTag)
	if fault.Is(err, fault.NotFound) {
		path, err = loop.Attach(ctx, file, loop.Options{Tag: loopTag})
	}
	if err == nil {
		err = os.Chown(path, uid, gid)
	}
	return path, err
}

func (m mapping) Disown(ctx context.Context, name string, o repository.Owner) error {
	file := filepath.Join(m.path, name)
	path, err := loop.Find(ctx, file, loopTag)
	if err == nil {
		err = loop.Detach(ctx, path, file, loopTag)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return m.Writable.Disown(ctx, name, o)
}

// TestImagesThatAreBlockDevices: NONE hands the device over, and it is the machine's alone.
func TestImagesThatAreBlockDevices(t *testing.T) {
	labtest.Root(t, "qemu-io")
	b := newBench(t, 0)
	content := noise(2<<20, 4)
	img := b.add("mine", content)
	img.Persistent = true
	w := b.way.open
	b.way.open = func(r disk.Repository) (repository.Repository, error) {
		repo, err := w(r)
		if err != nil {
			return nil, err
		}
		return mapping{remote{repo.(repository.Writable)}, r.Path}, nil
	}
	r := b.request(1, disk.Spec{Image: img, Mode: "NONE"})
	r.UID, r.GID = testUID, testGID
	var d device.Device
	for range 2 {
		d = b.prepare(r).Devices[0]
	}
	if uid, gid, _ := owner(t, d.Path); d.Kind != device.Block || d.Format != device.Raw || uid != testUID || gid != testGID {
		t.Errorf("%+v of %d:%d", d, uid, gid)
	}
	qemuIO(t, d.Path, "raw", "write -P 7 4096 4096")
	copy(content[4096:], bytes.Repeat([]byte{7}, 4096))
	if s, err := b.daemon.Status(t.Context()); err != nil || len(s.Exports) != 0 {
		t.Errorf("%+v %v", s, err)
	}
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.nothing()
	if got := readFile(t, filepath.Join(b.repository.Path, "mine")); !bytes.Equal(got, content) {
		t.Error("the image in its repository differs")
	}
}
