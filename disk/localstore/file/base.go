package file

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/durable"
)

// complete is the content of a base's mark. Size is for Data only.
type complete struct {
	localstore.Mark
	used time.Time // of the mark's file: when the base was last handed out
}

func readComplete(dir string, kind localstore.Kind) (complete, error) {
	var c complete
	path := filepath.Join(dir, completeName(kind))
	fi, err := os.Stat(path)
	if err != nil {
		return c, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, err
	}
	c.used = fi.ModTime()
	fi, err = os.Stat(basePath(dir, kind))
	if err == nil && kind == localstore.Data && fi.Size() != c.Size {
		err = fault.Errorf(fault.Corrupt, "base %s: %d bytes instead of %d", dir, fi.Size(), c.Size)
	}
	return c, err
}

func basePath(dir string, kind localstore.Kind) string {
	if kind == localstore.Tree {
		return filepath.Join(dir, "tree", "root")
	}
	return filepath.Join(dir, localstore.DataFile)
}

// Find implements localstore.Store.
func (s *Store) Find(_ context.Context, digest string, kind localstore.Kind) (string, error) {
	dir, err := s.dir(digest)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bases[baseKey{digest, kind}]
	if b == nil {
		return "", nil
	}
	if s.refresh(baseKey{digest, kind}, b, dir); b.partial {
		return "", nil
	}
	if _, err := readComplete(dir, kind); err != nil { // somebody else removed or cut it
		s.Log.Warn("base is no longer whole", "digest", digest, "error", err)
		delete(s.bases, baseKey{digest, kind})
		return "", os.RemoveAll(filepath.Join(dir, completeName(kind)))
	}
	b.used = time.Now()
	_ = os.Chtimes(filepath.Join(dir, completeName(kind)), b.used, b.used) // for the order of eviction only
	return basePath(dir, kind), nil
}

// builder implements localstore.Builder.
type builder struct {
	store  *Store
	digest string
	kind   localstore.Kind
	dir    string
	part   string   // what is being built
	file   *os.File // data, or the directory of a tree; holds the lock

	mu    sync.Mutex
	ended bool
}

// Build implements localstore.Store.
func (s *Store) Build(_ context.Context, digest string, kind localstore.Kind) (localstore.Builder, error) {
	dir, err := s.dir(digest)
	if err != nil {
		return nil, err
	}
	b := &builder{store: s, digest: digest, kind: kind, dir: dir}
	s.mu.Lock() // against the removal of the empty directory by another builder
	defer s.mu.Unlock()
	for try := 1; ; try++ {
		err := b.begin()
		if err == nil {
			return b, nil
		}
		err = errors.Join(err, b.drop())
		if !errors.Is(err, errSwept) || try == maxSwept {
			return nil, s.errorf(err)
		}
	}
}

// maxSwept is how often in a row; more often than that, what is gone is the store.
const maxSwept = 100

var errSwept = errors.New("swept away by a process that starts")

// begin makes what is built in, and locks it: until then another process that starts takes it for what a crash left.
func (b *builder) begin() (err error) {
	b.part, b.file = "", nil
	if err := b.store.makeDir(b.dir); err != nil {
		return sweptIfGone(err)
	}
	if b.kind == localstore.Tree {
		if b.part, err = os.MkdirTemp(b.dir, "tree"+partMark); err == nil {
			b.file, err = os.Open(b.part)
		}
	} else if b.file, err = os.CreateTemp(b.dir, "data"+partMark); err == nil {
		b.part = b.file.Name()
	}
	if err == nil {
		err = unix.Flock(int(b.file.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		_, err = os.Lstat(b.part)
	}
	if err == nil && b.kind == localstore.Tree {
		err = os.Mkdir(b.Path(), 0o755)
	}
	return sweptIfGone(err)
}

func sweptIfGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errSwept, err)
	}
	return err
}

func (b *builder) Path() string {
	if b.kind == localstore.Tree {
		return filepath.Join(b.part, "root")
	}
	return b.part
}

func (b *builder) SetSize(size int64) error { return b.file.Truncate(size) }

func (b *builder) WriteAt(p []byte, offset int64) (int, error) { return b.file.WriteAt(p, offset) }

// File is for sharing blocks with a source.
func (b *builder) File() *os.File { return b.file }

func (b *builder) Commit(_ context.Context, index []byte) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return "", fault.Errorf(fault.WrongState, "base %s: building has ended", b.digest)
	}
	mark, err := b.makeDurable()
	if err != nil {
		return "", b.store.errorf(err)
	}
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	key := baseKey{b.digest, b.kind}
	if _, taken := b.store.bases[key]; !taken {
		if err := b.place(mark, index); err != nil {
			return "", b.store.errorf(err)
		}
		b.store.bases[key] = &base{bytes: mark.Bytes, used: time.Now()}
	}
	b.ended = true
	return basePath(b.dir, b.kind), b.drop()
}

// makeDurable gives the base its final rights and has all of it on the disk.
func (b *builder) makeDurable() (complete, error) {
	if b.kind == localstore.Tree {
		bytes, err := treeBytes(b.part)
		if err != nil {
			return complete{}, err
		}
		return complete{Mark: localstore.Mark{Bytes: bytes}}, unix.Syncfs(int(b.file.Fd()))
	}
	if os.Geteuid() == 0 {
		if err := b.file.Chown(0, b.store.GID); err != nil {
			return complete{}, err
		}
	}
	if err := b.file.Chmod(0o440); err != nil {
		return complete{}, err
	}
	if err := b.file.Sync(); err != nil {
		return complete{}, err
	}
	fi, err := b.file.Stat()
	if err != nil {
		return complete{}, err
	}
	return complete{Mark: localstore.Mark{Size: fi.Size(), Bytes: fi.Sys().(*syscall.Stat_t).Blocks * 512}}, nil
}

func treeBytes(dir string) (int64, error) {
	var bytes int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			bytes += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return bytes, err
}

// place moves the parts to their names: content, index, and last the mark.
func (b *builder) place(mark complete, index []byte) error {
	final := filepath.Join(b.dir, string(b.kind))
	if err := removeTree(final); err != nil { // not marked, so of no worth
		return err
	}
	if err := os.Rename(b.part, final); err != nil {
		return err
	}
	b.part = ""
	if err := b.mark(mark, index); err != nil {
		return errors.Join(err, b.displace())
	}
	return nil
}

// mark writes what makes the content in its place a base.
func (b *builder) mark(mark complete, index []byte) error {
	if index != nil {
		if err := durable.WriteFile(filepath.Join(b.dir, "index"), index, 0o400); err != nil {
			return err
		}
	}
	text, err := json.Marshal(mark.Mark)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(b.dir, completeName(b.kind)), text, 0o400); err != nil {
		return err
	}
	return durable.SyncDir(b.store.baseRoot())
}

// displace takes away what place has put there: unmarked, nobody would count it or make room of it.
func (b *builder) displace() error {
	paths := []string{completeName(b.kind), string(b.kind)} // the mark first, as in remove
	if b.kind == localstore.Data {
		paths = append(paths, "index")
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, removeTree(filepath.Join(b.dir, path)))
	}
	return errors.Join(errs...)
}

func (b *builder) Abort() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil
	}
	b.ended = true
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	return b.drop()
}

// drop removes the part and, when nothing else is there, the base's directory.
func (b *builder) drop() error {
	var errs []error
	if b.part != "" {
		errs = append(errs, removeTree(b.part))
	}
	if b.file != nil {
		errs = append(errs, b.file.Close())
	}
	_ = os.Remove(b.dir) // fails unless empty
	return errors.Join(errs...)
}
