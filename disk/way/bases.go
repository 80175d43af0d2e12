package way

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/localstore"
	"hayloft/image"
)

// data is the data path.
func (w *Way) data() (blockd.Service, error) {
	if w.config.Data == nil {
		return nil, fault.Errorf(fault.Unsupported, "this host has no data path")
	}
	return w.config.Data, nil
}

// known is a base on its way here, as the data path knows it.
type known struct {
	spec   blockd.BaseSpec
	status cache.BaseStatus
	path   string // of a complete one; the data path was not asked then
	read   int64  // bytes of index fetched for it
}

// know counts a base, has the data path know it, and says how much of it is here. capacity is CACHE_SIZE: what
// is kept of it at most, unless more is kept already; 0: all. The caller has pinned the digest.
func (w *Way) know(ctx context.Context, img disk.Image, capacity int64) (k known, err error) {
	unlock, err := w.lock(ctx, img.Digest)
	if err != nil {
		return k, err
	}
	defer unlock()
	if k.path, err = w.store.Find(ctx, img.Digest, localstore.Data); err != nil || k.path != "" {
		return k, err
	}
	data, err := w.data()
	if err != nil {
		return k, err
	}
	dir, mark, err := w.store.Partial(ctx, img.Digest)
	if err != nil {
		return k, err
	}
	if dir == "" {
		if err := data.DropBase(ctx, img.Digest); err != nil { // of one that went without its knowing
			return k, err
		}
		if dir, mark, k.read, err = w.begin(ctx, img, capacity); err != nil {
			return k, err
		}
	}
	total, err := w.total(img.Digest, dir)
	if err == nil {
		if want := bounded(total, capacity); want > mark.Bytes {
			mark.Bytes = want
			_, err = w.store.Begin(ctx, img.Digest, mark, nil)
		}
	}
	if err == nil {
		k.spec = blockd.BaseSpec{Image: img, Dir: dir, GID: w.config.GID}
		if mark.Bytes < total {
			k.spec.Capacity = mark.Bytes
		}
		k.status, err = w.look(ctx, data, k.spec)
	}
	if err == nil && k.status.Complete {
		k.path, err = w.completed(ctx, k.spec)
	}
	return k, err
}

// look has the data path know a base, and notices that it was opened anew since its fetches were counted.
func (w *Way) look(ctx context.Context, data blockd.Service, spec blockd.BaseSpec) (cache.BaseStatus, error) {
	digest := spec.Image.Digest
	w.mu.Lock()
	counted := w.counted[digest]
	w.mu.Unlock()
	status, err := data.Base(ctx, spec)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && status.Fetched < counted && w.counted[digest] == counted {
		delete(w.counted, digest)
	}
	return status, err
}

// bounded is n, or limit when there is one that is smaller.
func bounded(n, limit int64) int64 {
	if limit > 0 {
		return min(n, limit)
	}
	return n
}

// begin brings the index of a base here and counts what its chunks may take.
func (w *Way) begin(ctx context.Context, img disk.Image, capacity int64) (dir string, mark localstore.Mark, read int64, err error) {
	repo, index, err := w.index(ctx, img)
	if err != nil {
		return "", mark, 0, err
	}
	info, err := repo.Stat(ctx, img.Source)
	if err != nil {
		return "", mark, 0, err
	}
	if err := checkLength(img, index, info.Size); err != nil {
		return "", mark, 0, err
	}
	text := index.Marshal()
	mark = localstore.Mark{Size: index.Length(), Bytes: bounded(index.DataBytes(), capacity)}
	if dir, err = w.store.Begin(ctx, img.Digest, mark, text); err != nil {
		return "", mark, 0, err
	}
	w.config.Log.Info("base begun", "image", img.ID, "name", img.Name, "digest", img.Digest, "bytes", index.DataBytes(), "counted", mark.Bytes)
	return dir, mark, int64(len(text)), nil
}

// total is how many bytes of data an image has whose base is in dir, by its index there.
func (w *Way) total(digest, dir string) (int64, error) {
	w.mu.Lock()
	total, have := w.totals[digest]
	w.mu.Unlock()
	if have {
		return total, nil
	}
	f, err := os.Open(filepath.Join(dir, localstore.IndexFile))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	index, err := image.ReadIndex(f, fi.Size(), digest)
	if err != nil {
		return 0, fault.Errorf(fault.ClassOf(err), "%s: %w", f.Name(), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.totals[digest] = index.DataBytes()
	return index.DataBytes(), nil
}

// fill brings a whole base here.
func (w *Way) fill(ctx context.Context, img disk.Image, rate int64, report func(done, total int64)) (path string, read int64, err error) {
	k, err := w.know(ctx, img, 0)
	if err != nil {
		return "", 0, named(img, err)
	}
	read = k.read
	if k.path != "" {
		return k.path, read, nil
	}
	n, err := w.preload(ctx, k, blockd.Preload{All: true, Rate: rate}, report)
	read += n
	if err == nil {
		path, err = w.completed(ctx, k.spec)
	}
	if err != nil {
		return "", read, named(img, err)
	}
	return path, read, nil
}

// preload brings some of a base here, and says how many bytes of it the repository gave that nobody else was told of.
func (w *Way) preload(ctx context.Context, k known, p blockd.Preload, report func(done, total int64)) (read int64, err error) {
	data, err := w.data()
	if err != nil {
		return 0, err
	}
	p.Digest = k.spec.Image.Digest
	err = data.Preload(ctx, p, report)
	if fault.Is(err, fault.NotFound) { // the data path began anew since it was told, or the image is gone
		if _, again := data.Base(ctx, k.spec); again != nil {
			return 0, errors.Join(err, again)
		}
		err = data.Preload(ctx, p, report)
	}
	now, statusErr := fetched(context.WithoutCancel(ctx), data, p.Digest)
	if statusErr != nil {
		return 0, errors.Join(err, statusErr)
	}
	return w.count(p.Digest, k.status.Fetched, now), err
}

// fetched is what a base has fetched since it was opened last.
func fetched(ctx context.Context, data blockd.Service, digest string) (int64, error) {
	status, err := data.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, b := range status.Bases {
		if b.Digest == digest {
			return b.Status.Fetched, nil
		}
	}
	return 0, nil
}

// count is what a base fetched between two looks at it, less what somebody else was told of.
func (w *Way) count(digest string, before, now int64) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now < before {
		before = 0 // opened anew since
	}
	if now < w.counted[digest] {
		w.counted[digest] = 0
	}
	from := max(before, w.counted[digest])
	w.counted[digest] = now
	return now - from
}

// completionLimit is how long a base whose last chunk is here may take to be marked, everything durable.
const completionLimit = 10 * time.Minute

// completed waits until the mark of a base is there that should have all its chunks. fault.Busy when it cannot have
// them because machines that use it gave it a capacity.
func (w *Way) completed(ctx context.Context, spec blockd.BaseSpec) (string, error) {
	data, err := w.data()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, completionLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		path, err := w.store.Find(ctx, spec.Image.Digest, localstore.Data)
		if err != nil || path != "" {
			return path, err
		}
		status, err := data.Base(ctx, spec)
		switch {
		case err != nil:
			return "", err
		case !status.Complete && status.Present < status.Total:
			return "", fault.Errorf(fault.Busy, "base %s cannot be brought here whole: machines use it with a CACHE_SIZE, it has %d of %d bytes",
				spec.Image.Digest, status.Present, status.Total)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fault.Errorf(fault.Unavailable, "base %s is not marked as complete: %w", spec.Image.Digest, ctx.Err())
		}
	}
}

// dropEmpty drops those of the bases that have nothing, if nobody needs them.
func (w *Way) dropEmpty(ctx context.Context, digests []string) error {
	bases, err := w.store.Bases(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range bases {
		if slices.Contains(digests, b.Digest) && b.Kind == localstore.Data && !b.Complete && b.Taken == 0 {
			errs = append(errs, w.store.Drop(ctx, b.Digest, b.Kind))
		}
	}
	return errors.Join(errs...)
}

// Bases implements disk.Way.
func (w *Way) Bases(ctx context.Context) ([]disk.Base, error) {
	bases, err := w.store.Bases(ctx)
	if err != nil {
		return nil, err
	}
	var list []disk.Base
	for _, b := range bases {
		d := disk.Base{Digest: b.Digest, Present: b.Bytes, Total: b.Bytes, Complete: true}
		if !b.Complete {
			path, err := w.store.Path(b.Digest, b.Kind)
			if err != nil {
				return nil, err
			}
			total, err := w.total(b.Digest, filepath.Dir(path))
			if err != nil {
				continue // gone since, or not to be believed
			}
			d = disk.Base{Digest: b.Digest, Present: min(b.Taken, total), Total: total}
		}
		if n := len(list); n > 0 && list[n-1].Digest == d.Digest { // data and tree of one archive
			if d.Complete && !list[n-1].Complete {
				list[n-1] = d
			}
			continue
		}
		list = append(list, d)
	}
	return w.withVolumes(ctx, list)
}

// withVolumes adds images that are here in volumes. They are not called complete: only disks of mode OFFLINE can use them.
func (w *Way) withVolumes(ctx context.Context, list []disk.Base) ([]disk.Base, error) {
	if w.config.Volumes == nil {
		return list, nil
	}
	volumes, err := w.config.Volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		hex, ok := strings.CutPrefix(v.Name, basePrefix)
		digest := "blake3:" + hex
		if _, err := image.ParseDigest(digest); !ok || err != nil {
			continue
		}
		if !slices.ContainsFunc(list, func(b disk.Base) bool { return b.Digest == digest && b.Complete }) {
			list = slices.DeleteFunc(list, func(b disk.Base) bool { return b.Digest == digest })
			list = append(list, disk.Base{Digest: digest, Present: v.Size, Total: v.Size})
		}
	}
	slices.SortFunc(list, func(a, b disk.Base) int { return strings.Compare(a.Digest, b.Digest) })
	return list, nil
}

// Prefetch implements disk.Way.
func (w *Way) Prefetch(ctx context.Context, i disk.Image, rate int64, report func(disk.Progress)) (err error) {
	if _, err := image.ParseDigest(i.Digest); err != nil {
		return named(i, err)
	}
	if rate < 0 {
		return named(i, fault.Errorf(fault.Invalid, "rate of %d bytes a second", rate))
	}
	if i.Persistent {
		return named(i, fault.Errorf(fault.Unsupported, "a persistent image is not kept for machines to come"))
	}
	kind := localstore.Data
	if image.Format(i.Format).IsTree() {
		kind = localstore.Tree
	}
	unpin := w.store.Pin(i.Digest)
	defer func() {
		if unpin(); err != nil {
			err = errors.Join(err, w.dropEmpty(context.WithoutCancel(ctx), []string{i.Digest}))
		}
	}()
	_, _, err = w.base(ctx, i, kind, rate, func(done, total int64) {
		if report != nil {
			report(disk.Progress{Step: "prefetch " + i.Name, Done: done, Total: total})
		}
	})
	return err
}
