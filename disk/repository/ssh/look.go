package ssh

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"sort"
	"strings"

	"hayloft/disk"
	"hayloft/disk/repository"
)

// Stat implements repository.Repository.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Info{}, err
	}
	ctx, done := r.noting(ctx, "looking at", name)
	defer done()
	found := make(chan repository.Info, 2) // again may run twice
	err := r.again(ctx, r.limits.answer, func(l *link) error {
		fi, err := r.lstat(l, name)
		if err == nil {
			found <- repository.Info{Name: name, Size: fi.Size(), Modified: fi.ModTime()}
		}
		return r.object(l, name, err)
	})
	if err != nil {
		return repository.Info{}, err
	}
	return <-found, nil
}

// List implements repository.Repository.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	found := make(chan []repository.Info, 2)
	err := r.again(ctx, r.limits.commit, func(l *link) error {
		var list []repository.Info
		err := r.walk(ctx, l, prefix, func(name string, fi fs.FileInfo) {
			if strings.HasPrefix(name, prefix) && fi.Mode().IsRegular() && repository.CheckName(name) == nil {
				list = append(list, repository.Info{Name: name, Size: fi.Size(), Modified: fi.ModTime()})
			}
		})
		sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
		found <- list
		return r.object(l, prefix, err)
	})
	if err != nil {
		return nil, err
	}
	return <-found, nil
}

// walk visits all files, hidden ones too, in folders where objects may lie whose name starts with prefix.
func (r *Repository) walk(ctx context.Context, l *link, prefix string, visit func(name string, fi fs.FileInfo)) error {
	const deepest = 4 // as repository.CheckName has it
	// What is above the last slash of prefix need not be looked through.
	dirs := []string{path.Dir(prefix + "x")}
	if dirs[0] != "." && repository.CheckName(dirs[0]) != nil {
		return nil
	}
	for first := true; len(dirs) > 0; first = false {
		dir := dirs[0]
		dirs = dirs[1:]
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := l.files.ReadDirContext(ctx, r.file(dir))
		if errors.Is(err, fs.ErrNotExist) && (!first || dir != ".") {
			continue // deleted while we look
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			if e.IsDir() {
				if !strings.HasPrefix(e.Name(), ".") && strings.Count(name, "/")+1 < deepest &&
					(strings.HasPrefix(name+"/", prefix) || strings.HasPrefix(prefix, name+"/")) {
					dirs = append(dirs, name)
				}
				continue
			}
			visit(name, e)
		}
	}
	return nil
}

// Capacity implements repository.Repository.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	found := make(chan disk.Capacity, 2)
	err := r.again(ctx, r.limits.answer, func(l *link) error {
		st, err := l.files.StatVFS(r.base)
		if err != nil {
			return r.object(l, ".", err)
		}
		unit := int64(st.Frsize)
		found <- disk.Capacity{Total: int64(st.Blocks) * unit, Free: int64(st.Bavail) * unit, Used: int64(st.Blocks-st.Bfree) * unit}
		return nil
	})
	if err != nil {
		return disk.Capacity{}, err
	}
	return <-found, nil
}

// Delete implements repository.Repository.
func (r *Repository) Delete(ctx context.Context, name string) error {
	ctx, done := r.noting(ctx, "deleting", name)
	defer done()
	err := r.locked(ctx, r.limits.commit, name, func(l *link) error {
		if _, err := r.lstat(l, name); err != nil {
			return err
		}
		switch m, err := r.readMark(l, name); {
		case err == nil:
			return m.Busy()
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if err := l.files.Remove(r.file(name)); err != nil {
			return err
		}
		return r.syncDir(l, name)
	})
	if err != nil || !strings.Contains(name, "/") {
		return err
	}
	return r.once(ctx, r.limits.answer, func(l *link) error {
		r.removeEmptyParents(l, name)
		return nil
	})
}
