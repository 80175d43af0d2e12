package file

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/durable"
)

// readPartial reads the mark of a Data base that is being filled.
func readPartial(dir string) (complete, error) {
	var c complete
	path := filepath.Join(dir, localstore.PartialFile)
	fi, err := os.Stat(path)
	if err != nil {
		return c, err
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &c.Mark)
	}
	if err == nil && (c.Size < 0 || c.Bytes < 0) {
		err = fault.Errorf(fault.Corrupt, "mark %s: size %d, bytes %d", path, c.Size, c.Bytes)
	}
	c.used = fi.ModTime()
	return c, err
}

// refresh notices that somebody else has made a base complete. The caller holds the lock.
func (s *Store) refresh(key baseKey, b *base, dir string) {
	if !b.partial {
		return
	}
	if mark, err := readComplete(dir, key.kind); err == nil {
		b.partial, b.bytes = false, mark.Bytes
		s.Log.Info("base is complete", "digest", key.digest)
	}
}

// Begin implements localstore.Store.
func (s *Store) Begin(ctx context.Context, digest string, mark localstore.Mark, index []byte) (string, error) {
	dir, err := s.dir(digest)
	if err != nil {
		return "", err
	}
	key := baseKey{digest, localstore.Data}
	s.mu.Lock()
	if _, err := s.evicted(ctx, digest); err != nil {
		s.mu.Unlock()
		return "", err
	}
	b := s.bases[key]
	var had int64
	if b != nil {
		s.refresh(key, b, dir)
		had = b.bytes
		if !b.partial || mark.Bytes <= had {
			s.mu.Unlock()
			return dir, nil
		}
	}
	s.mu.Unlock()
	more, err := s.Reserve(ctx, "base", mark.Bytes-had, mark.Bytes-had)
	if err != nil {
		return "", err
	}
	defer more.Release() // counted by the mark from here on
	s.mu.Lock()
	defer s.mu.Unlock()
	if b = s.bases[key]; b != nil && (!b.partial || b.bytes >= mark.Bytes) {
		return dir, nil
	}
	if err := s.begin(dir, mark, index, b == nil); err != nil {
		return "", s.errorf(err)
	}
	s.bases[key] = &base{bytes: mark.Bytes, used: time.Now(), partial: true}
	return dir, nil
}

// begin writes the index and then the mark, into an empty directory when the base is fresh.
func (s *Store) begin(dir string, mark localstore.Mark, index []byte, fresh bool) (err error) {
	if err := s.makeDir(dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(dir) // fails unless empty
		}
	}()
	if fresh {
		if err := s.removeFiles(dir, localstore.Data); err != nil { // not marked, so of no worth
			return err
		}
		if err := durable.WriteFile(filepath.Join(dir, localstore.IndexFile), index, 0o400); err != nil {
			return err
		}
	}
	text, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, localstore.PartialFile), text, 0o400); err != nil {
		if fresh {
			_ = os.Remove(filepath.Join(dir, localstore.IndexFile))
		}
		return err
	}
	return durable.SyncDir(s.baseRoot())
}

// Partial implements localstore.Store.
func (s *Store) Partial(ctx context.Context, digest string) (string, localstore.Mark, error) {
	dir, err := s.dir(digest)
	if err != nil {
		return "", localstore.Mark{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.evicted(ctx, digest); err != nil {
		return "", localstore.Mark{}, err
	}
	key := baseKey{digest, localstore.Data}
	b := s.bases[key]
	if b == nil {
		return "", localstore.Mark{}, nil
	}
	if s.refresh(key, b, dir); !b.partial {
		return "", localstore.Mark{}, nil
	}
	mark, err := readPartial(dir)
	if err != nil { // somebody else removed it, or it has become complete this moment
		if s.refresh(key, b, dir); b.partial {
			s.Log.Warn("base is no longer here", "digest", digest, "error", err)
			delete(s.bases, key)
		}
		return "", localstore.Mark{}, nil
	}
	b.used = time.Now()
	_ = os.Chtimes(filepath.Join(dir, localstore.PartialFile), b.used, b.used) // for the order of eviction only
	return dir, mark.Mark, nil
}

// taken is what a base takes up on the disk now.
func (s *Store) taken(key baseKey, b *base) int64 {
	if !b.partial {
		return b.bytes
	}
	dir, err := s.dir(key.digest)
	if err != nil {
		return 0
	}
	fi, err := os.Stat(basePath(dir, key.kind))
	if err != nil {
		return 0
	}
	return min(b.bytes, fi.Sys().(*syscall.Stat_t).Blocks*512)
}

// owed is what partial bases may still come to take of the file system. The caller holds the lock.
func (s *Store) owed() (bytes int64) {
	for key, b := range s.bases {
		if b.partial {
			bytes += b.bytes - s.taken(key, b)
		}
	}
	return bytes
}

// Path implements localstore.Store.
func (s *Store) Path(digest string, kind localstore.Kind) (string, error) {
	dir, err := s.dir(digest)
	return basePath(dir, kind), err
}
