package path

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"hayloft/cloud/fault"
)

// Sweep implements repository.Sweeper. With a prefix that names a folder, folders in there that are empty go too: writers die
// between making one and what it is for.
func (r *Repository) Sweep(ctx context.Context, prefix string) error {
	return r.within(ctx, func(root *os.Root) error {
		dead := map[string]bool{}
		var folders []string
		err := fs.WalkDir(root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case d.IsDir() && strings.HasSuffix(prefix, "/") && strings.HasPrefix(file+"/", prefix):
				folders = append(folders, file)
				return nil
			case d.IsDir() || !strings.HasPrefix(d.Name(), "."):
				return nil
			}
			name := strings.TrimPrefix(d.Name(), ".")
			base, part := strings.CutSuffix(name, ".part")
			if !part {
				base, part = strings.CutSuffix(name, ".lock")
			}
			if full := path.Join(path.Dir(file), base); part && !strings.HasSuffix(base, markSuffix) && strings.HasPrefix(full, prefix) {
				dead[full] = true
			}
			return nil
		})
		if err != nil {
			return r.object(prefix, err)
		}
		for name := range dead {
			lock, err := lockName(root, name)
			if fault.Is(err, fault.Busy) || errors.Is(err, fs.ErrNotExist) {
				continue // its writer lives, or another sweep was faster
			}
			if err != nil {
				return r.object(name, err)
			}
			err = root.RemoveAll(hidden(name, ".part"))
			if err = errors.Join(err, unlockName(root, name, lock)); err != nil {
				return r.object(name, err)
			}
			removeEmptyParents(root, name)
		}
		for _, folder := range slices.Backward(folders) { // what is inside first
			removeEmptyParents(root, folder+"/x")
		}
		return nil
	})
}
