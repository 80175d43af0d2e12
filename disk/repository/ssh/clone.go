package ssh

import (
	"context"
	_ "embed" // for the script
	"errors"
	"io"
	"io/fs"
	"os"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
)

//go:embed clone.sh
var cloneScript string

// CreateFrom implements repository.Cloner: cp on the storage server shares blocks where its file system can, and copies
// without the holes where it cannot. No byte comes over the line.
func (r *Repository) CreateFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	if err := repository.CheckName(from); err != nil {
		return nil, "", err
	}
	kinds := make(chan repository.CloneKind, 1)
	w, err := r.create(ctx, r.limits.commit, name, func(l *link, w *writer) error {
		kind, err := r.clone(ctx, l, from, w)
		kinds <- kind
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return w, <-kinds, nil
}

// clone makes the hidden file of w a copy of from.
func (r *Repository) clone(ctx context.Context, l *link, from string, w *writer) (repository.CloneKind, error) {
	if err := r.cloneable(l, from); err != nil {
		return "", err
	}
	kind := repository.Reflinked
	err := r.copy(ctx, from, w.part, "--reflink=always")
	var failed *command.Error
	if errors.As(err, &failed) {
		kind = repository.Copied
		err = r.copy(ctx, from, w.part, "--reflink=auto", "--sparse=always")
	}
	if errors.As(err, &failed) {
		if st, bad := l.files.StatVFS(r.base); bad == nil && st.Bavail*st.Frsize < 1<<20 {
			err = fault.As(fault.OutOfSpace, err)
		}
	}
	if err != nil {
		return "", err
	}
	if w.file, err = l.files.OpenFile(r.file(w.part), os.O_RDWR); err != nil {
		return "", err
	}
	fi, err := w.file.Stat()
	if err != nil {
		return "", err
	}
	w.size.Store(fi.Size())
	w.grows = true
	return kind, w.file.Chmod(0o640)
}

// cloneable refuses what is not there or not whole.
func (r *Repository) cloneable(l *link, from string) error {
	if _, err := r.lstat(l, from); err != nil {
		return fault.Errorf(fault.ClassOf(err), "clone of %s: %w", from, err)
	}
	m, err := r.readMark(l, from)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault.Errorf(fault.ClassOf(err), "clone of %s: %w", from, err)
	case m.Undrained:
		return fault.Errorf(fault.Busy, "clone of %s: %w", from, m.Busy())
	}
	return nil
}

// copy runs cp on the other host; it ends when ctx does, or the connection.
func (r *Repository) copy(ctx context.Context, from, to string, how ...string) error {
	p, err := r.host.Start(ctx, command.Cmd{Name: "sh", Args: append([]string{"-c", cloneScript, "hayloft-clone", r.file(from), r.file(to)}, how...)})
	if err != nil {
		return err
	}
	defer p.Stdin.Close()
	go func() { _, _ = io.Copy(io.Discard, p.Stdout) }() // ends with the process
	return p.Wait(ctx)
}

// Flatten implements repository.Cloner: clones here depend on nobody.
func (r *Repository) Flatten(ctx context.Context, name string) error {
	_, err := r.Stat(ctx, name)
	return err
}

// Parent implements repository.Cloner.
func (r *Repository) Parent(ctx context.Context, name string) (string, error) {
	_, err := r.Stat(ctx, name)
	return "", err
}
