package way

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/durable"
)

// baseVolumes are the books about whole images in volumes. When they were last used is not remembered beyond this
// process: those of before count as used longest ago.
type baseVolumes struct {
	mu   sync.Mutex
	pins map[string]int
	used map[string]time.Time
}

// volumeKind of a flight brings an image into a volume.
const volumeKind localstore.Kind = "volume"

func baseVolume(digest string) (string, error) {
	hex, err := image.ParseDigest(digest)
	return basePrefix + hex, err
}

// pinVolume keeps a base from making room; it waits for one that is on its way out.
func (w *Way) pinVolume(ctx context.Context, name string) (release func(), err error) {
	unlock, err := w.lock(ctx, "volume "+name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	b := &w.bases
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pins[name]++
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.used[name] = time.Now()
		if b.pins[name]--; b.pins[name] == 0 {
			delete(b.pins, name)
		}
	}), nil
}

func (w *Way) isPinned(name string) bool {
	w.bases.mu.Lock()
	defer w.bases.mu.Unlock()
	return w.bases.pins[strings.TrimSuffix(name, partSuffix)] > 0
}

// provision makes a volume, for which bases that nobody uses make room.
func (w *Way) provision(ctx context.Context, s localstore.VolumeSpec) (localstore.Volume, error) {
	volumes, err := w.volumes(ctx)
	if err != nil {
		return localstore.Volume{}, err
	}
	return w.makingRoom(ctx, s.Size, func() (localstore.Volume, error) { return volumes.Provision(ctx, s) })
}

func (w *Way) makingRoom(ctx context.Context, size int64, take func() (localstore.Volume, error)) (localstore.Volume, error) {
	kept := map[string]bool{}
	for {
		v, err := take()
		if !fault.Is(err, fault.OutOfSpace) {
			return v, err
		}
		if c, failed := w.config.Volumes.Capacity(ctx); failed != nil || size > c.Total {
			return v, errors.Join(err, failed) // whatever goes
		}
		gone, failed := w.evictVolume(ctx, kept)
		if failed != nil || !gone {
			return v, errors.Join(err, failed)
		}
	}
}

// evictVolume removes the base that was used longest ago among those that nobody uses and that are not in kept, where it
// notes one that cannot go. gone is false when there is none.
func (w *Way) evictVolume(ctx context.Context, kept map[string]bool) (gone bool, err error) {
	for {
		name, err := w.leastUsedVolume(ctx, kept)
		if err != nil || name == "" {
			return false, err
		}
		gone, err := w.dropBaseVolume(ctx, name)
		if err != nil || gone {
			return gone, err
		}
		kept[name] = true
	}
}

func (w *Way) leastUsedVolume(ctx context.Context, kept map[string]bool) (string, error) {
	list, err := w.config.Volumes.List(ctx)
	if err != nil {
		return "", err
	}
	w.bases.mu.Lock()
	defer w.bases.mu.Unlock()
	oldest := ""
	for _, v := range list {
		if !strings.HasPrefix(v.Name, basePrefix) || strings.HasSuffix(v.Name, partSuffix) || kept[v.Name] || w.bases.pins[v.Name] > 0 {
			continue
		}
		if oldest == "" || w.bases.used[v.Name].Before(w.bases.used[oldest]) {
			oldest = v.Name
		}
	}
	return oldest, nil
}

// dropBaseVolume removes a base unless somebody came to use it.
func (w *Way) dropBaseVolume(ctx context.Context, name string) (gone bool, err error) {
	unlock, err := w.lock(ctx, "volume "+name)
	if err != nil {
		return false, err
	}
	defer unlock()
	if w.isPinned(name) {
		return false, nil
	}
	err = w.config.Volumes.Unprovision(ctx, name)
	if fault.Is(err, fault.Busy) {
		w.config.Log.Info("base not evicted", "volume", name, "error", err)
		return false, nil
	}
	if err == nil {
		_ = os.Remove(w.indexPath(name)) // or it is of use again
		w.bases.mu.Lock()
		delete(w.bases.used, name)
		w.bases.mu.Unlock()
		w.config.Log.Info("base evicted", "volume", name)
	}
	return err == nil, err
}

// DropVolumes removes the bases in volumes that nobody uses, as many as there are, and the pool that they were in if it is the local
// store's own: for a host that is given up.
func (w *Way) DropVolumes(ctx context.Context) error {
	if w.config.Volumes == nil {
		return nil
	}
	for kept := map[string]bool{}; ; {
		gone, err := w.evictVolume(ctx, kept)
		if err != nil {
			return err
		}
		if !gone {
			break
		}
	}
	if store, ok := w.config.Volumes.(interface{ DropPool(context.Context) error }); ok {
		return store.DropPool(ctx)
	}
	return nil
}

// fillVolume brings a whole image into a volume, unless it is in one: under another name until all of it is durable.
// The caller has pinned the volume.
func (w *Way) fillVolume(ctx context.Context, img disk.Image, report func(done, total int64)) (path string, read int64, err error) {
	name, err := baseVolume(img.Digest)
	if err != nil {
		return "", 0, named(img, err)
	}
	volumes, err := w.volumes(ctx)
	if err != nil {
		return "", 0, named(img, err)
	}
	v, err := volumes.Find(ctx, name)
	if err == nil || !fault.Is(err, fault.NotFound) {
		return v.Path, 0, err
	}
	part := name + partSuffix
	if err := volumes.Unprovision(ctx, part); err != nil { // of a flight that could not take it back
		return "", 0, named(img, err)
	}
	size := roundUp(img.Size, sector)
	v, err = w.provision(ctx, localstore.VolumeSpec{Name: part, Size: size, UID: os.Geteuid(), GID: os.Getegid(), Raw: true})
	if err == nil {
		var index *image.Index
		if index, read, err = w.copyInto(ctx, img, v, size, report); err == nil {
			err = w.keepIndex(name, index)
		}
	}
	if err == nil {
		v, err = volumes.Rename(ctx, part, name)
	}
	if err != nil {
		return "", read, named(img, errors.Join(err, volumes.Unprovision(context.WithoutCancel(ctx), part)))
	}
	w.config.Log.Info("base in a volume", "image", img.ID, "name", img.Name, "volume", name, "bytes", v.Size)
	return v.Path, read, nil
}

// copyInto copies an image into a volume, as copyWhole does: from its repository, or from the base that this host has as a
// file.
func (w *Way) copyInto(ctx context.Context, img disk.Image, v localstore.Volume, size int64, report func(done, total int64)) (_ *image.Index, read int64, err error) {
	unpin := w.store.Pin(img.Digest)
	defer unpin()
	repo, index, err := w.index(ctx, img)
	if err != nil {
		return nil, 0, err
	}
	read = int64(len(index.Marshal()))
	local, err := w.store.Find(ctx, img.Digest, localstore.Data)
	if err != nil {
		return nil, read, err
	}
	if local != "" {
		src, err := os.Open(local)
		if err != nil {
			return nil, read, err
		}
		defer src.Close()
		_, err = w.copyWhole(ctx, v.Name, src, index, v, size, report)
		return index, read, err
	}
	src, err := repo.Open(ctx, img.Source)
	if err != nil {
		return nil, read, err
	}
	defer src.Close()
	if err := checkLength(img, index, src.Size()); err != nil {
		return nil, read, err
	}
	n, err := w.copyWhole(ctx, fmt.Sprintf("datastore %d", img.Repository.ID), src, index, v, size, report)
	return index, read + n, err
}

// indexPath is where the chunk index of a base in a volume is kept, so that it can be copied without its repository.
func (w *Way) indexPath(volume string) string {
	return filepath.Join(w.config.Root, "volume", volume+image.IndexSuffix)
}

func (w *Way) keepIndex(volume string, index *image.Index) error {
	path := w.indexPath(volume)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(path, index.Marshal(), 0o400)
}

// indexOfVolume is the index of a base in a volume; from its repository when what is kept cannot be used.
func (w *Way) indexOfVolume(ctx context.Context, img disk.Image) (*image.Index, error) {
	name, err := baseVolume(img.Digest)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(w.indexPath(name))
	if err == nil {
		index, err := image.ReadIndex(bytes.NewReader(text), int64(len(text)), img.Digest)
		if err == nil {
			return index, nil
		}
		w.config.Log.Warn("kept index of a base is of no use", "volume", name, "error", err)
	}
	_, index, err := w.index(ctx, img)
	return index, err
}
