package url

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
)

// source closes what it stands on after itself.
type source struct {
	*qemublock.Disk
	below repository.Source
}

func (s source) Close() error { return errors.Join(s.Disk.Close(), s.below.Close()) }

// Open implements repository.Repository.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	below, err := r.bytes(ctx, name)
	if err != nil || r.format == "raw" {
		return below, err
	}
	if err := whole(r.format, below.Size(), below); err != nil {
		return nil, errors.Join(r.object(name, err), below.Close())
	}
	d, err := qemublock.Open(ctx, qemublock.Options{Label: r.label + ": object " + name, Limit: r.limit,
		Node: qemublock.Format{Name: r.format, Node: qemublock.Served{Source: below}}})
	if err != nil {
		// The bytes can be read: what QEMU does not like is in them.
		if ctx.Err() == nil && fault.Is(err, fault.Unavailable) && readable(below) {
			err = fault.As(fault.Corrupt, err)
		}
		return nil, errors.Join(err, below.Close())
	}
	return source{d, below}, nil
}

// bytes opens an object as it is stored.
func (r *Repository) bytes(ctx context.Context, name string) (repository.Source, error) {
	if r.inner != nil {
		return r.inner.Open(ctx, name)
	}
	d, err := qemublock.Open(ctx, qemublock.Options{Label: r.label + ": object " + name, Limit: r.limit, Node: r.node(name)})
	if err != nil {
		return nil, err
	}
	if err := first(d); err != nil {
		return nil, errors.Join(r.object(name, err), d.Close())
	}
	return d, nil
}

// first reads the first byte: QEMU opens directories of NFS servers like files, and says only then that the argument is
// invalid.
func first(d *qemublock.Disk) error {
	if d.Size() == 0 {
		return nil
	}
	_, err := d.ReadAt(make([]byte, 1), 0)
	if err != nil && strings.Contains(err.Error(), syscall.EINVAL.Error()) {
		return fault.Errorf(fault.Invalid, "is a directory, or no file that can be read: %w", err)
	}
	return err
}

func readable(s repository.Source) bool {
	n := min(s.Size(), 512)
	_, err := s.ReadAt(make([]byte, n), s.Size()-n)
	return err == nil
}

// Stat implements repository.Repository. Modified is zero for nfs and gluster, where QEMU does not say.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Info{}, err
	}
	info := repository.Info{Name: name}
	if r.inner != nil {
		var err error
		if info, err = r.inner.Stat(ctx, name); err != nil {
			return repository.Info{}, err
		}
	}
	s, err := r.Open(ctx, name)
	if err != nil {
		return repository.Info{}, err
	}
	info.Size = s.Size()
	return info, s.Close()
}

// listers is how many objects are described at a time.
const listers = 4

// List implements repository.Repository where what is below can be listed. Files that are no images of FORMAT, or not
// whole, are left out.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	if r.inner == nil {
		return nil, fault.Errorf(fault.Unsupported, "%s: cannot be listed", r.label)
	}
	all, err := r.inner.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(listers)
	images := make([]bool, len(all))
	for i := range all {
		group.Go(func() error {
			info, err := r.Stat(ctx, all[i].Name)
			switch class := fault.ClassOf(err); {
			case err == nil:
				all[i], images[i] = info, true
				return nil
			case class == fault.Corrupt, class == fault.Invalid, class == fault.Unsupported, class == fault.NotFound:
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	list := all[:0]
	for i, info := range all {
		if images[i] {
			list = append(list, info)
		}
	}
	return list, nil
}
