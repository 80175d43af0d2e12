package way

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/image"
)

// fakeData is a data path that keeps books and fills bases, but exports nothing: for what a real one cannot be made
// to do at will. Errors are returned by the method named, once for each.
type fakeData struct {
	open func(disk.Repository) (repository.Repository, error)

	mu      sync.Mutex
	bases   map[string]*fakeBase
	exports map[string]blockd.Export
	open0   map[string]int   // connections by export
	dirty   map[string]int64 // undrained bytes by export
	fail    map[string]error // by method
	calls   []string
	failAt  int // the call to fail, counted from 1 and back to 0; 0: none
}

type fakeBase struct {
	spec   blockd.BaseSpec
	status cache.BaseStatus // guarded by the fake's mu
	later  []blockd.Preload
	filler sync.Mutex
}

func newFake() *fakeData {
	return &fakeData{open: drivers.Open, bases: map[string]*fakeBase{}, exports: map[string]blockd.Export{}, open0: map[string]int{},
		dirty: map[string]int64{}, fail: map[string]error{}}
}

var _ blockd.Service = (*fakeData)(nil)

func (f *fakeData) called(what, of string) error {
	f.calls = append(f.calls, what+" "+of)
	if f.failAt > 0 {
		if f.failAt--; f.failAt == 0 {
			return fault.Errorf(fault.Unavailable, "the data path fails in %s %s", what, of)
		}
	}
	return f.fail[what]
}

// count is how often a method was called with a subject that starts so.
func (f *fakeData) count(call string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, call) {
			n++
		}
	}
	return n
}

func (f *fakeData) Base(_ context.Context, s blockd.BaseSpec) (cache.BaseStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Base", s.Image.Name); err != nil {
		return cache.BaseStatus{}, err
	}
	b := f.bases[s.Image.Digest]
	if b == nil {
		b = &fakeBase{}
		f.bases[s.Image.Digest] = b
		data, err := os.OpenFile(filepath.Join(s.Dir, localstore.DataFile), os.O_CREATE|os.O_RDWR, 0o440)
		if err != nil {
			return b.status, err
		}
		index, err := readIndexFile(s)
		if err == nil {
			b.status.Total = index.DataBytes()
			err = data.Truncate(index.Length())
		}
		if err = errors.Join(err, data.Close()); err != nil {
			return b.status, err
		}
	}
	b.spec = s
	return b.status, nil
}

func readIndexFile(s blockd.BaseSpec) (*image.Index, error) {
	f, err := os.Open(filepath.Join(s.Dir, localstore.IndexFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return image.ReadIndex(f, fi.Size(), s.Image.Digest)
}

func (f *fakeData) Preload(ctx context.Context, p blockd.Preload, report func(done, total int64)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Preload", p.Digest); err != nil {
		return err
	}
	b := f.bases[p.Digest]
	switch {
	case b == nil:
		return fault.Errorf(fault.NotFound, "base %s: not known", p.Digest)
	case p.Background:
		b.later = append(b.later, p)
		return nil
	case p.All:
		return f.fill(ctx, b, b.status.Total, report)
	}

	return f.fill(ctx, b, p.Bytes, report)
}

// fill fetches up to some bytes of data, in order. f.mu is held, and let go of meanwhile.
func (f *fakeData) fill(ctx context.Context, b *fakeBase, until int64, report func(done, total int64)) error {
	f.mu.Unlock()
	defer f.mu.Lock()
	b.filler.Lock()
	defer b.filler.Unlock()
	if b.status.Complete {
		return nil
	}
	index, err := readIndexFile(b.spec)
	if err != nil {
		return err
	}
	repo, err := f.open(b.spec.Image.Repository)
	if err != nil {
		return err
	}
	src, err := repo.Open(ctx, b.spec.Image.Source)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.Chmod(filepath.Join(b.spec.Dir, localstore.DataFile), 0o640); err != nil {
		return err
	}
	data, err := os.OpenFile(filepath.Join(b.spec.Dir, localstore.DataFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer data.Close()
	have := int64(0)
	for i := 0; i < index.Chunks() && have < until; i++ {
		if index.IsZero(i) {
			continue
		}
		offset, length := index.Range(i)
		if have += int64(length); have <= b.status.Present {
			continue
		}
		p := make([]byte, length)
		if _, err := src.ReadAt(p, offset); err != nil {
			return err
		}
		if err := index.VerifyChunk(i, p); err != nil {
			return err
		}
		if _, err := data.WriteAt(p, offset); err != nil {
			return err
		}
		f.mu.Lock()
		b.status.Present += int64(length)
		b.status.Fetched += int64(length)
		f.mu.Unlock()
		if report != nil {
			report(b.status.Present, b.status.Total)
		}
	}
	if b.status.Present < b.status.Total {
		return data.Sync()
	}
	if err := f.complete(b); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b.status.Complete = true
	return nil
}

func (f *fakeData) complete(b *fakeBase) error {
	s := b.spec
	fi, err := os.Stat(filepath.Join(s.Dir, localstore.DataFile))
	if err != nil {
		return err
	}
	data := filepath.Join(s.Dir, localstore.DataFile)
	if err := errors.Join(os.Chmod(data, 0o440), own(data, os.Geteuid(), s.GID)); err != nil {
		return err
	}
	text, err := json.Marshal(localstore.Mark{Size: fi.Size(), Bytes: b.status.Total})
	if err == nil {
		err = os.WriteFile(filepath.Join(s.Dir, localstore.CompleteFile), text, 0o400)
	}
	return errors.Join(err, os.Remove(filepath.Join(s.Dir, localstore.PartialFile)))
}

// arrive is what was to be brought in the background.
func (f *fakeData) arrive(digest string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.bases[digest]
	return f.fill(context.Background(), b, b.status.Total, nil)
}

func (f *fakeData) Export(_ context.Context, e blockd.Export) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Export", e.Name); err != nil {
		return err
	}
	if had, ok := f.exports[e.Name]; ok && !alike(had, e) {
		return fault.Errorf(fault.Exists, "export %s is there, and differs", e.Name)
	}
	if _, err := os.Stat(filepath.Dir(e.Path)); err != nil { // where the socket would be
		return err
	}
	f.exports[e.Name] = e
	if e.Volume != nil {
		return os.WriteFile(filepath.Join(e.Volume.Dir, "cache"), []byte(e.Volume.Mode), 0o600)
	}
	return nil
}

func (f *fakeData) Unexport(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Unexport", name); err != nil {
		return err
	}
	delete(f.exports, name)
	return nil
}

func (f *fakeData) Settle(_ context.Context, name string, report func(done, total int64)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Settle", name); err != nil {
		return err
	}
	if _, ok := f.exports[name]; !ok {
		return fault.Errorf(fault.NotFound, "export %s: not known", name)
	}
	if report != nil {
		report(f.dirty[name], f.dirty[name])
	}
	delete(f.dirty, name)
	return nil
}

func (f *fakeData) Discard(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Discard", name); err != nil {
		return err
	}
	e, ok := f.exports[name]
	switch {
	case !ok:
		return fault.Errorf(fault.NotFound, "export %s: not known", name)
	case f.dirty[name] > 0:
		return fault.Errorf(fault.WrongState, "export %s has %d undrained bytes", name, f.dirty[name])
	}
	delete(f.exports, name)
	if err := os.Remove(filepath.Join(e.Volume.Dir, "cache")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *fakeData) DropBase(_ context.Context, digest string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("DropBase", digest); err != nil {
		return err
	}
	for _, e := range f.exports {
		if e.Base != nil && e.Base.Image.Digest == digest {
			return fault.Errorf(fault.Busy, "base %s is exported", digest)
		}
	}
	delete(f.bases, digest)
	return nil
}

func (f *fakeData) Status(context.Context) (blockd.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var s blockd.Status
	if err := f.called("Status", ""); err != nil {
		return s, err
	}
	for digest, b := range f.bases {
		s.Bases = append(s.Bases, blockd.BaseState{Digest: digest, Status: b.status})
	}
	for name, e := range f.exports {
		x := blockd.ExportStatus{Name: name, Path: e.Path, Connections: f.open0[name]}
		if e.Volume != nil {
			x.Volume = &cache.VolumeStatus{Mode: e.Volume.Mode, Cached: 4096, Undrained: f.dirty[name]}
		}
		s.Exports = append(s.Exports, x)
	}
	slices.SortFunc(s.Exports, func(a, b blockd.ExportStatus) int { return strings.Compare(a.Name, b.Name) })
	return s, nil
}
