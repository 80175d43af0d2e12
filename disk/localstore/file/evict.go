package file

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hayloft/disk/localstore"
	"hayloft/internal/durable"
)

// inUseNow reports whether a pin or a machine's record names a base. The caller holds the lock.
func (s *Store) inUseNow(digest string) bool {
	if s.pins[digest] > 0 {
		return true
	}
	for _, m := range s.machines {
		if slices.Contains(m.Bases, digest) {
			return true
		}
	}
	return false
}

// leastUsed is the base to evict first, among those that nobody uses and that are not in skip.
func (s *Store) leastUsed(skip map[baseKey]bool) (baseKey, bool) {
	used := map[string]bool{}
	for _, m := range s.machines {
		for _, d := range m.Bases {
			used[d] = true
		}
	}
	var (
		oldest baseKey
		found  bool
	)
	for k, b := range s.bases {
		if used[k.digest] || s.pins[k.digest] > 0 || skip[k] || s.evicting[k.digest] != nil {
			continue
		}
		if !found || b.used.Before(s.bases[oldest].used) {
			oldest, found = k, true
		}
	}
	return oldest, found
}

// evicted waits until nobody is evicting the base, or any base when digest is "", and reports whether there was
// something to wait for. The caller holds the lock, which is let go of meanwhile.
func (s *Store) evicted(ctx context.Context, digest string) (bool, error) {
	ended := s.evicting[digest]
	if digest == "" {
		for _, ended = range s.evicting {
			break
		}
	}
	if ended == nil {
		return false, nil
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-ended:
		return true, nil
	case <-ctx.Done():
		return true, ctx.Err()
	}
}

// giveUp evicts a base that nobody uses, once whoever has it open has let go of it. gone is false when it
// did not, or when somebody came to use it meanwhile. The caller holds the lock, which is let go of meanwhile.
func (s *Store) giveUp(ctx context.Context, key baseKey) (gone bool, err error) {
	if key.kind == localstore.Data && s.Evicting != nil {
		ended := make(chan struct{})
		s.evicting[key.digest] = ended
		s.mu.Unlock()
		err := s.Evicting(ctx, key.digest)
		s.mu.Lock()
		delete(s.evicting, key.digest)
		close(ended)
		if err != nil {
			s.Log.Info("base not evicted", "digest", key.digest, "error", err)
			return false, ctx.Err()
		}
		if s.inUseNow(key.digest) || s.bases[key] == nil {
			return false, nil
		}
	}
	if err := s.remove(key); err != nil {
		return false, err
	}
	s.Log.Info("base evicted", "digest", key.digest, "kind", key.kind)
	return true, nil
}

// Drop implements localstore.Store.
func (s *Store) Drop(ctx context.Context, digest string, kind localstore.Kind) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := baseKey{digest, kind}
	if _, err := s.evicted(ctx, digest); err != nil {
		return err
	}
	if s.bases[key] == nil || s.inUseNow(digest) {
		return nil
	}
	if _, err := s.giveUp(ctx, key); err != nil {
		return s.errorf(err)
	}
	return nil
}

// remove removes a base; the caller holds the lock and knows that nobody uses it.
func (s *Store) remove(key baseKey) error {
	dir, err := s.dir(key.digest)
	if err != nil {
		return err
	}
	delete(s.bases, key)
	// The marks go first: a crash from here on leaves a base that is not there.
	marks := []string{completeName(key.kind)}
	if key.kind == localstore.Data {
		marks = append(marks, localstore.PartialFile)
	}
	for _, mark := range marks {
		if err := os.Remove(filepath.Join(dir, mark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := durable.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.removeFiles(dir, key.kind); err != nil {
		return err
	}
	_ = os.Remove(dir)
	return nil
}

// removeFiles removes the files of one kind of base, other than what is being built.
func (s *Store) removeFiles(dir string, kind localstore.Kind) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if kindOfFile(e.Name()) != kind {
			continue
		}
		if strings.Contains(e.Name(), partMark) {
			_, err = removeUnused(path)
		} else {
			err = removeTree(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// kindOfFile is the kind of base that a file in a base's directory belongs to.
func kindOfFile(name string) localstore.Kind {
	if strings.HasPrefix(strings.TrimPrefix(name, "."), "tree") {
		return localstore.Tree
	}
	return localstore.Data
}
