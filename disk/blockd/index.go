package blockd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/base"
	"hayloft/disk/cache/storage"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/durable"
)

// readIndex reads a base's index, which is fetched once.
func (b *based) readIndex(ctx context.Context, s BaseSpec) (*image.Index, error) {
	path := filepath.Join(s.Dir, localstore.IndexFile)
	index, err := indexFile(path, s.Image.Digest)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !fault.Is(err, fault.Corrupt) {
		return index, err
	}
	at := s.Image.IndexAt()
	repo, err := b.daemon.config.Open(at.Repository)
	if err != nil {
		return nil, err
	}
	src, err := repo.Open(ctx, at.Name)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if index, err = image.ReadIndex(src, src.Size(), s.Image.Digest); err != nil {
		return nil, err
	}
	return index, durable.WriteFile(path, index.Marshal(), 0o400)
}

func indexFile(path, digest string) (*image.Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return image.ReadIndex(f, fi.Size(), digest)
}

// Donors cost the memory of their indexes for as long as a base is open.
const (
	maxDonors      = 16
	maxDonorsBytes = 8 << 20 // of index files
)

// donors are the bases beside the one in dir: those that are open here, and those that are complete. There are none
// for one that is complete itself.
func (d *Daemon) donors(dir string, index *image.Index) []cache.Donor {
	if exists(filepath.Join(dir, localstore.CompleteFile)) {
		return nil
	}
	list, open := d.openDonors(dir, index)
	beside, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return list
	}
	bytes := int64(0)
	for _, e := range beside {
		other := filepath.Join(filepath.Dir(dir), e.Name())
		if other == filepath.Clean(dir) || open[other] || !e.IsDir() || !exists(filepath.Join(other, localstore.CompleteFile)) || !exists(filepath.Join(other, localstore.DataFile)) {
			continue
		}
		path := filepath.Join(other, localstore.IndexFile)
		fi, err := os.Stat(path)
		if err != nil || bytes+fi.Size() > maxDonorsBytes || len(list) >= maxDonors {
			continue
		}
		x, err := indexFile(path, "")
		if err != nil || x.ChunkSize() != index.ChunkSize() {
			continue
		}
		bytes += fi.Size()
		list = append(list, cache.Donor{Index: x, Has: func(int) bool { return true }, Open: func() (storage.File, error) { return openDonor(other) }})
	}
	return list
}

// openDonors are those whose indexes are in memory anyway, and their directories.
func (d *Daemon) openDonors(dir string, index *image.Index) ([]cache.Donor, map[string]bool) {
	d.mu.Lock()
	all := sorted(d.bases)
	d.mu.Unlock()
	var list []cache.Donor
	dirs := map[string]bool{}
	for _, b := range all {
		b.mu.Lock()
		donating, ok := b.base.(base.Donating)
		other := filepath.Clean(b.record.Spec.Dir)
		if ok && filepath.Dir(other) == filepath.Dir(dir) && b.index.ChunkSize() == index.ChunkSize() {
			list = append(list, donating.Donor())
			dirs[other] = true
		}
		b.mu.Unlock()
	}
	return list, dirs
}

func openDonor(dir string) (storage.File, error) {
	files, err := storage.OS(dir)
	if err != nil {
		return nil, err
	}
	return files.Open(localstore.DataFile)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
