package ssh

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"hayloft/cloud/fault"
)

// Sweep implements repository.Sweeper.
func (r *Repository) Sweep(ctx context.Context, prefix string) error {
	return r.once(ctx, r.limits.commit, func(l *link) error {
		dead := map[string]bool{}
		err := r.walk(ctx, l, prefix, func(file string, _ fs.FileInfo) {
			name, isHidden := strings.CutPrefix(path.Base(file), ".")
			base, part := strings.CutSuffix(name, ".part")
			if !part {
				base, part = strings.CutSuffix(name, ".lock")
			}
			if full := path.Join(path.Dir(file), base); isHidden && part && base != "" && !strings.HasSuffix(base, markSuffix) && strings.HasPrefix(full, prefix) {
				dead[full] = true
			}
		})
		if err != nil {
			return r.object(l, prefix, err)
		}
		for name := range dead {
			held, err := r.lockNames(ctx, hidden(name, ".part"), "", name)
			if fault.Is(err, fault.Busy) {
				continue // its writer lives, or another sweep was faster
			}
			if err != nil {
				if _, gone := l.files.Lstat(path.Dir(r.file(name))); errors.Is(gone, fs.ErrNotExist) {
					continue
				}
				return r.object(l, name, err)
			}
			if err := held.release(); err != nil { // removes both files
				return r.object(l, name, err)
			}
		}
		return nil
	})
}
