package ssh

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/undo"
)

// Create implements repository.Repository. The writer ends with the connection that it was made on.
func (r *Repository) Create(ctx context.Context, name string) (repository.Writer, error) {
	w, err := r.create(ctx, r.limits.mark, name, func(l *link, w *writer) error {
		file, err := l.files.OpenFile(r.file(w.part), os.O_RDWR|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return err
		}
		w.file = file
		return file.Chmod(0o640)
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// create makes a writer whose hidden file make opens.
func (r *Repository) create(ctx context.Context, limit time.Duration, name string, make func(*link, *writer) error) (*writer, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	ctx, done := r.noting(ctx, "making", name)
	defer done()
	return hand(ctx, r, limit, func(l *link) (*writer, error) {
		w, err := r.begin(ctx, l, name, make)
		return w, r.object(l, name, r.full(l, err, 0))
	}, func(w *writer) { _ = w.drop() })
}

func (r *Repository) begin(ctx context.Context, l *link, name string, make func(*link, *writer) error) (_ *writer, err error) {
	var back undo.Stack
	defer func() { err = errors.Join(err, back.Run()) }()
	back.Push(func() error { r.removeEmptyParents(l, name); return nil })
	// A name of its own for each writer: what a lost connection still carries out cannot touch the next one's file.
	unique := name + "." + random()
	w := &writer{repository: r, name: name, part: hidden(unique, ".part")}
	for attempt := 0; ; attempt++ {
		if err := r.mkdirs(l, name); err != nil {
			return nil, err
		}
		w.lock, err = r.lockNames(ctx, w.part, "", name, unique)
		if err == nil {
			break
		}
		// Who tidies up may have removed the folder meanwhile.
		if _, gone := l.files.Lstat(path.Dir(r.file(name))); !errors.Is(gone, fs.ErrNotExist) {
			return nil, err
		} else if attempt == 3 {
			return nil, gone
		}
	}
	back.Push(func() error { _ = w.lock.release(); return nil })
	if _, err := l.files.Lstat(r.file(name)); err == nil {
		return nil, fault.Errorf(fault.Exists, "exists")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	back.Push(func() error {
		if w.file != nil {
			w.file.Close()
		}
		return nil
	})
	if err := make(l, w); err != nil {
		return nil, err
	}
	if r.plain {
		if w.plain, err = r.openPlain(ctx, l, w.part, true); err != nil {
			return nil, err
		}
		back.Push(func() error { w.plain.close(); return nil })
	}
	if w.link, w.release, err = r.share(ctx, l); err != nil {
		return nil, err
	}
	back.Keep()
	return w, nil
}

// share takes a further share in the connection of a link.
func (r *Repository) share(ctx context.Context, l *link) (*link, func(), error) {
	same, release, err := r.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	if same != l {
		release()
		return nil, nil, l.conn.Err()
	}
	return same, release, nil
}

func random() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// mkdirs makes the folders of name that are missing.
func (r *Repository) mkdirs(l *link, name string) error {
	elements := strings.Split(name, "/")
	for i := 1; i < len(elements); i++ {
		dir := strings.Join(elements[:i], "/")
		fi, err := l.files.Lstat(r.file(dir))
		if errors.Is(err, fs.ErrNotExist) {
			err = l.files.Mkdir(r.file(dir))
			if err == nil {
				if err := l.files.Chmod(r.file(dir), 0o750); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			} else if fi, err2 := l.files.Lstat(r.file(dir)); err2 == nil && fi.IsDir() {
				err = nil // somebody else did
			}
		} else if err == nil && !fi.IsDir() {
			return fault.Errorf(fault.Invalid, "%s is a %s, not a directory", dir, kindOf(fi.Mode()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writer implements repository.Writer.
type writer struct {
	repository *Repository
	link       *link
	release    func() // its share in the connection
	name, part string
	lock       *lock
	file       *sftp.File
	plain      *plainFile   // nil: the bytes go the encrypted way
	size       atomic.Int64 // at least; what a clone begins with
	grows      bool         // SetSize does not make it shorter

	ending sync.Mutex // held by the worker that ends it: its caller may have left
	ended  bool
}

// do runs f on the writer's connection.
func (w *writer) do(ctx context.Context, bytes int, f func() error) error {
	r := w.repository
	return r.on(ctx, w.link, r.limits.forBytes(bytes), func() error {
		return r.object(w.link, w.name, r.full(w.link, f(), bytes))
	})
}

func (w *writer) WriteAt(p []byte, offset int64) (int, error) {
	own := bytes.Clone(p) // the caller may use p again when it has left a storage that hangs
	err := w.do(context.Background(), len(p), func() error {
		if w.plain != nil {
			return w.plain.writeAt(own, offset)
		}
		return writeAt(w.link, w.file, own, offset)
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *writer) ReadAt(p []byte, offset int64) (int, error) {
	var n atomic.Int64
	var end atomic.Bool
	err := w.do(context.Background(), len(p), func() error {
		fi, err := w.file.Stat()
		if err != nil {
			return err
		}
		var k int
		var eof bool
		if w.plain != nil {
			k, eof, err = w.plain.readAt(p, offset, fi.Size())
		} else {
			k, eof, err = readAt(w.link, w.file, fi.Size(), p, offset)
		}
		n.Store(int64(k))
		end.Store(eof)
		return err
	})
	return result(int(n.Load()), end.Load(), err)
}

func (w *writer) SetSize(size int64) error {
	if have := w.size.Load(); w.grows && size < have {
		return fault.Errorf(fault.Invalid, "%s: object %s: cannot be cut from %d to %d bytes", w.repository.label, w.name, have, size)
	}
	err := w.do(context.Background(), 0, func() error { return w.file.Truncate(size) })
	if err == nil {
		w.size.Store(size)
	}
	return err
}

func (w *writer) Commit(ctx context.Context) error {
	r := w.repository
	if ctx.Err() != nil { // or it would begin all the same, with nobody to hear of it
		return r.gone(ctx)
	}
	return r.on(ctx, w.link, r.limits.commit, func() error {
		w.ending.Lock()
		defer w.ending.Unlock()
		if w.ended {
			return fault.Errorf(fault.WrongState, "%s: object %s: writer has ended", r.label, w.name)
		}
		return r.object(w.link, w.name, r.full(w.link, w.commit(), 0))
	})
}

// commit gives the hidden file its name. OpenSSH carries out a plain SFTP rename as link and unlink: it never replaces
// another's object, not even when the lock was lost and the request comes late.
func (w *writer) commit() error {
	r, l := w.repository, w.link
	if err := l.sync(w.file); err != nil {
		return err
	}
	if err := w.lock.lost(); err != nil {
		return err
	}
	if err := l.files.Rename(r.file(w.part), r.file(w.name)); err != nil {
		if _, there := l.files.Lstat(r.file(w.name)); there == nil {
			return fault.Errorf(fault.Exists, "exists")
		}
		return err
	}
	w.ended = true
	defer w.release()
	w.closePlain()
	return errors.Join(r.syncDir(l, w.name), w.file.Close(), w.lock.release())
}

func (w *writer) Abort() error {
	r := w.repository
	return r.on(context.Background(), w.link, r.limits.answer, func() error {
		w.ending.Lock()
		defer w.ending.Unlock()
		if w.ended {
			return nil
		}
		return r.object(w.link, w.name, w.drop())
	})
}

// drop leaves nothing behind: with the lock the hidden file goes, and folders that were made for it.
func (w *writer) drop() error {
	w.ended = true
	defer w.release()
	w.closePlain()
	_ = w.file.Close()
	return w.lock.release()
}

func (w *writer) closePlain() {
	if w.plain != nil {
		w.plain.close()
	}
}
