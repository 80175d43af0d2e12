package golden

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hayloft/internal/lockfile"
)

// recipeVersion changes the key when the Go code that makes the images changes what is in them.
const recipeVersion = "2"

// key names a set: the versions of its packages and everything of ours that goes into it.
func key(p packages) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%v %v\n", recipeVersion, p.describe(), CmdlinePC, bootModules, cdromModules)
	err := fs.WalkDir(recipe, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := recipe.ReadFile(name)
		fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

func setIn(dir string, p packages) Set {
	return Set{
		Dir:      dir,
		Disk:     filepath.Join(dir, "tiny.img"),
		Kernel:   filepath.Join(dir, "tiny-vmlinuz"),
		Initrd:   filepath.Join(dir, "tiny-initrd"),
		Tar:      filepath.Join(dir, "tiny.tar.gz"),
		TarZst:   filepath.Join(dir, "tiny.tar.zst"),
		Squashfs: filepath.Join(dir, "tiny.squashfs"),
		Versions: p.Versions,
	}
}

// filler makes the files of a set in dir; scratch is a directory for whatever it needs on the way.
type filler func(ctx context.Context, scratch, dir string) error

// cached returns the set of p from the cache.
func cached(ctx context.Context, o Options, p packages, fill filler) (Set, error) {
	name, err := key(p)
	if err != nil {
		return Set{}, err
	}
	final, err := kept(ctx, o.Dir, name, fill)
	return setIn(final, p), err
}

// kept returns the directory of that name in the cache, filled once. It appears by a rename when all of it is on
// disk, so a directory that is there is complete.
func kept(ctx context.Context, cache, name string, fill filler) (string, error) {
	final := filepath.Join(cache, name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(cache, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := removeLeftovers(cache); err != nil {
		return "", err
	}
	scratch, err := os.MkdirTemp(cache, leftover)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	fresh := filepath.Join(scratch, "set")
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return "", err
	}
	if err := fill(ctx, scratch, fresh); err != nil {
		return "", err
	}
	return final, publish(fresh, final)
}

const leftover = ".building-"

// removeLeftovers drops what an interrupted build left; the caller holds the lock, so nobody is building.
func removeLeftovers(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, leftover+"*"))
	for _, name := range old {
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

// publish makes everything below fresh durable and gives it its final name.
func publish(fresh, final string) error {
	entries, err := os.ReadDir(fresh)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := syncPath(filepath.Join(fresh, e.Name())); err != nil {
			return err
		}
	}
	if err := syncPath(fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, final); err != nil {
		return err
	}
	return syncPath(filepath.Dir(final))
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lock takes the build lock of a cache directory. The kernel drops it when its holder dies.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := lockfile.Take(ctx, f, lockfile.Forever); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
