// Package ssh is the repository driver for a directory of another host, reached by SFTP.
//
// Files lie there as those of driver path do, with the same marks and locks beside them, so that the storage server
// itself may use the directory as a path while others reach it over SSH. Who writes holds the kernel's lock
// (flock) on the storage server, through a shell there that watches our connection: a host that dies, or is cut
// off for a minute, holds nothing any more. So writing needs a login with a shell of the POSIX kind and flock,
// timeout, dd, stat, date and cp; for reading SFTP alone is enough. Locks of NFS clients are of another kind in the
// server's kernel (POSIX): a directory must not be used through NFS and through this driver at the same time.
//
// Options: HOST ([user@]host[:port]), PORT, KEY_FILE, KNOWN_HOSTS_FILE (see package remote), PLAIN_DATA and
// REMOTE_PROGRAM (see package plaindata).
package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
	"hayloft/internal/remote"
	"hayloft/internal/waiting"
)

// Repository implements repository.Repository, Writable, Cloner and Sweeper on a directory of another host.
type Repository struct {
	label   string // as in errors
	base    string
	host    *remote.Host
	plain   bool
	program string
	limits  limits

	mu      sync.Mutex
	links   map[uint64]*link // of connections that live, by their id
	targets map[string]int   // that are open, by object
}

var (
	_ repository.Repository = (*Repository)(nil)
	_ repository.Writable   = (*Repository)(nil)
	_ repository.Cloner     = (*Repository)(nil)
	_ repository.Sweeper    = (*Repository)(nil)
)

// New describes the repository in directory r.Path of the host that r.Options name; nothing is contacted yet.
func New(r disk.Repository) (*Repository, error) {
	config, err := remote.FromOptions(r.Options)
	if err != nil {
		return nil, fmt.Errorf("datastore %d: %w", r.ID, err)
	}
	return Connect(r, config)
}

// Connect is New with another way to reach the host than the options say; for tests that cannot wait.
func Connect(r disk.Repository, config remote.Config) (*Repository, error) {
	if !path.IsAbs(r.Path) || strings.ContainsAny(r.Path, "\x00\n") {
		return nil, fault.Errorf(fault.Invalid, "datastore %d: path %q is not absolute", r.ID, r.Path)
	}
	plain := r.Options["PLAIN_DATA"]
	if plain != "" && !strings.EqualFold(plain, "YES") && !strings.EqualFold(plain, "NO") {
		return nil, fault.Errorf(fault.Invalid, "datastore %d: PLAIN_DATA %q is neither YES nor NO", r.ID, plain)
	}
	host, err := remote.New(config)
	if err != nil {
		return nil, fmt.Errorf("datastore %d: %w", r.ID, err)
	}
	base := path.Clean(r.Path)
	program := r.Options["REMOTE_PROGRAM"]
	if program == "" {
		program = "hayloft"
	}
	return &Repository{label: fmt.Sprintf("datastore %d (%s:%s)", r.ID, host, base), base: base, host: host,
		plain: strings.EqualFold(plain, "YES"), program: program, limits: defaultLimits, links: map[uint64]*link{}, targets: map[string]int{}}, nil
}

// Close ends the connections; without it they end when they have been idle for a while.
func (r *Repository) Close() error { return r.host.Close() }

// limits are how long the storage may take, before the connection is given up.
type limits struct {
	answer time.Duration // one request: where all is well it takes far less
	mark   time.Duration // a lock and a few requests
	commit time.Duration // gigabytes may be waiting to be written
}

var defaultLimits = limits{answer: time.Minute, mark: 2 * time.Minute, commit: 30 * time.Minute}

// slowest is how many bytes a second a line brings that is still of use.
const slowest = 64 << 10

// forBytes is how long n bytes may take.
func (l limits) forBytes(n int) time.Duration {
	return l.answer + time.Duration(n/slowest)*time.Second
}

// link is a connection in use.
type link struct {
	conn  *remote.Conn
	files *sftp.Client

	// What is being made durable. The SFTP server answers nothing else meanwhile: it does one thing at a time.
	syncing atomic.Int32

	plain plainLink
}

// sync makes durable what is in f, however long that takes.
func (l *link) sync(f *sftp.File) error {
	l.syncing.Add(1)
	defer l.syncing.Add(-1)
	return f.Sync()
}

// connect gives a share in the connection that is there, or makes one; release ends the share.
func (r *Repository) connect(ctx context.Context) (l *link, release func(), err error) {
	conn, err := r.host.Connect(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", r.label, err)
	}
	files, err := conn.SFTP(ctx)
	if err != nil {
		conn.Release()
		return nil, nil, fmt.Errorf("%s: %w", r.label, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, l := range r.links {
		select {
		case <-l.conn.Done():
			delete(r.links, id)
		default:
		}
	}
	l = r.links[conn.ID()]
	if l == nil {
		l = &link{conn: conn, files: files}
		r.links[conn.ID()] = l
	}
	return l, conn.Release, nil
}

// once runs f, which owns what it touches: when ctx ends or the limit passes, the caller leaves it to the connection,
// with whose end it ends too. A connection that does not answer in time is given up.
func (r *Repository) once(ctx context.Context, limit time.Duration, f func(l *link) error) error {
	if ctx.Err() != nil {
		return r.gone(ctx)
	}
	l, release, err := r.connect(ctx)
	if err != nil {
		return err
	}
	return r.on(ctx, l, limit, func() error {
		defer release()
		return f(l)
	})
}

// on is once for a link that the caller, and f with it, has a share in. While the storage is at work to make something
// durable, the limit is that of a commit.
func (r *Repository) on(ctx context.Context, l *link, limit time.Duration, f func() error) error {
	began := time.Now()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	done := make(chan error, 1)
	go func() { done <- r.heard(l, f()) }()
	for {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return r.gone(ctx)
		case <-timer.C:
		}
		lapse := time.Since(began)
		if l.syncing.Load() > 0 && lapse < r.limits.commit {
			timer.Reset(min(limit, r.limits.commit-lapse))
			continue
		}
		err := fmt.Errorf("its storage has not answered for %v", lapse.Round(time.Second))
		l.conn.Lose(err)
		return fault.Errorf(fault.Unavailable, "%s: %w", r.label, err)
	}
}

// noting has ctx know what a call does, for as long as that takes.
func (r *Repository) noting(ctx context.Context, doing, name string) (context.Context, func()) {
	return waiting.On(ctx, "%s object %s of %s", doing, name, r.label)
}

// heard makes errors of a lost connection what they are.
func (r *Repository) heard(l *link, err error) error {
	if err == nil {
		return nil
	}
	// The end of a file never gets here: this one is the connection's.
	ended := errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection) || errors.Is(err, io.EOF)
	if (ended || fault.ClassOf(err) == fault.Internal) && !l.conn.Lost() && ended {
		l.conn.Lose(errors.New("its SFTP server ended"))
		<-l.conn.Done()
	}
	select {
	case <-l.conn.Done():
		var begun *repository.NotBegun
		if errors.As(err, &begun) {
			return err
		}
		return fault.Errorf(fault.Unavailable, "%s: %w", r.label, l.conn.Err())
	default:
		return err
	}
}

// again is once, repeated on a new connection when the first was lost: for what changes nothing.
func (r *Repository) again(ctx context.Context, limit time.Duration, f func(l *link) error) error {
	var used *link
	err := r.once(ctx, limit, func(l *link) error { used = l; return f(l) })
	if ctx.Err() != nil || !fault.Is(err, fault.Unavailable) || used == nil {
		return err
	}
	select {
	case <-used.conn.Done():
		return r.once(ctx, limit, f)
	default:
		return err
	}
}

func (r *Repository) gone(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.Errorf(fault.Unavailable, "%s: no answer in time: %w", r.label, ctx.Err())
	}
	return fmt.Errorf("%s: %w", r.label, ctx.Err())
}

// hand runs open; when the caller has left by the time it is done, discard takes the result.
func hand[T any](ctx context.Context, r *Repository, limit time.Duration, open func(*link) (T, error), discard func(T)) (T, error) {
	h := attempt.Hand[T]{Discard: discard}
	return h.Take(r.once(ctx, limit, func(l *link) error { return h.Give(open(l)) }))
}

// object puts repository and object into err and classifies it. What SFTP calls a failure is trouble of the storage.
func (r *Repository) object(l *link, name string, err error) error {
	if err == nil {
		return nil
	}
	class := fault.ClassOf(err)
	var status *sftp.StatusError
	switch {
	case errors.Is(err, sftp.ErrSSHFxConnectionLost):
		return err // see heard
	case class == fault.NotFound && l != nil:
		if _, gone := l.files.Stat(r.base); errors.Is(gone, fs.ErrNotExist) {
			return fault.Errorf(fault.Unavailable, "%s: cannot be reached: there is no such directory", r.label)
		}
	case class == fault.Internal && errors.As(err, &status):
		class = fault.Unavailable
	}
	return fault.Errorf(class, "%s: object %s: %w", r.label, name, err)
}

// full is err, or fault.OutOfSpace when the storage has no room for the bytes: SFTP itself does not say so.
func (r *Repository) full(l *link, err error, bytes int) error {
	var status *sftp.StatusError
	if err == nil || !errors.As(err, &status) {
		return err
	}
	st, failed := l.files.StatVFS(r.base)
	switch {
	case failed != nil:
		return err
	case st.Bavail*st.Frsize < uint64(bytes)+1<<20:
		return fault.Errorf(fault.OutOfSpace, "no space left: %d bytes are free", st.Bavail*st.Frsize)
	case st.Files > 0 && st.Favail == 0:
		return fault.Errorf(fault.OutOfSpace, "no space left: no file can be made any more")
	}
	return err
}

// file is where an object, or what is hidden beside it, lies on the other host.
func (r *Repository) file(name string) string { return r.base + "/" + name }

// hidden is a name beside name that List does not show.
func hidden(name, suffix string) string {
	dir, file := path.Split(name)
	return dir + "." + file + suffix
}

// lstat describes an object; it refuses what is there but is not a plain file, and links on the way to it.
func (r *Repository) lstat(l *link, name string) (os.FileInfo, error) {
	elements := strings.Split(name, "/")
	infos, errs := make([]os.FileInfo, len(elements)), make([]error, len(elements))
	var group sync.WaitGroup
	for i := range elements {
		group.Go(func() { infos[i], errs[i] = l.files.Lstat(r.file(strings.Join(elements[:i+1], "/"))) })
	}
	group.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, err
		}
		if i < len(elements)-1 && !infos[i].IsDir() {
			return nil, fault.Errorf(fault.NotFound, "%s is a %s, not a directory", strings.Join(elements[:i+1], "/"), kindOf(infos[i].Mode()))
		}
	}
	last := infos[len(infos)-1]
	if !last.Mode().IsRegular() {
		return nil, fault.Errorf(fault.Invalid, "is a %s, not a file", kindOf(last.Mode()))
	}
	return last, nil
}

func kindOf(m os.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&os.ModeSymlink != 0:
		return "symbolic link"
	case m&os.ModeDevice != 0:
		return "device node"
	}
	return "special file"
}

// syncDir makes names in the directory of name durable.
func (r *Repository) syncDir(l *link, name string) error {
	d, err := l.files.Open(path.Dir(r.file(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(l.sync(d), d.Close())
}

// removeEmptyParents tidies folders that Create made; the first that is not empty ends it.
func (r *Repository) removeEmptyParents(l *link, name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if l.files.RemoveDirectory(r.file(dir)) != nil {
			return
		}
	}
}
