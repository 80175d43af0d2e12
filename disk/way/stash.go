package way

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/image/archive"
	"hayloft/internal/durable"
	"hayloft/internal/undo"
)

// A stash is machines/ID in a repository: the files, and last the manifest, which says that all of them are there.
// Until then the machine's files here are complete, and from then on those in the stash are.

type manifest struct {
	Token string    `json:"token"` // of the Stash that made it
	Files []stashed `json:"files"`
}

type stashed struct {
	Name string `json:"name"`           // of the object within the stash
	Disk int    `json:"disk"`           // -1 for an extra file
	Tree bool   `json:"tree"`           // a tar of the upper directory
	Kind kind   `json:"kind,omitempty"` // of the disk; "" in stashes of before there were copies
}

const (
	manifestName = "manifest"
	extraPrefix  = "extra."
)

func stashDir(machine int) string { return "machines/" + strconv.Itoa(machine) }

// Stash implements disk.Way.
func (w *Way) Stash(ctx context.Context, machine int, dir string, extra []string, to disk.Repository) error {
	unlock, err := w.lock(ctx, machineTurn(machine))
	if err != nil {
		return err
	}
	defer unlock()
	if err := w.stash(ctx, machine, dir, extra, to); err != nil {
		return fmt.Errorf("machine %d: stash: %w", machine, err)
	}
	return nil
}

func (w *Way) stash(ctx context.Context, machine int, dir string, extra []string, to disk.Repository) error {
	repo, err := w.open(to)
	if err != nil {
		return err
	}
	r, err := w.record(ctx, machine)
	if err != nil {
		return err
	}
	there, err := readManifest(ctx, repo, machine)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	switch {
	case r == nil && there == nil:
		return fault.Errorf(fault.NotFound, "no disks on this host")
	case r == nil:
		return nil // done before
	case there == nil || r.Stashing == "" || there.Token != r.Stashing:
		if err := w.settleAll(ctx, r, true, nil); err != nil {
			return err
		}
		if err := w.fillStash(ctx, repo, r, extra); err != nil {
			return err
		}
	}
	for _, file := range extra {
		if err := os.RemoveAll(file); err != nil {
			return err
		}
	}
	return w.remove(ctx, machine, r.Dir, r)
}

// fillStash writes a stash anew; one that is there is an older state of the machine.
func (w *Way) fillStash(ctx context.Context, repo repository.Repository, r *record, extra []string) (err error) {
	if err := dropStash(ctx, repo, r.ID); err != nil {
		return err
	}
	r.Stashing = rand.Text()
	if err := w.putRecord(ctx, r); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dropStash(context.WithoutCancel(ctx), repo, r.ID))
		}
	}()
	m := manifest{Token: r.Stashing}
	for _, d := range r.Disks {
		file := stashed{Name: filepath.Base(diskPath(r.Dir, d.ID)), Disk: d.ID, Tree: d.Kind == tree, Kind: d.Kind}
		name := path.Join(stashDir(r.ID), file.Name)
		switch {
		case d.Volume != "":
			err = w.putVolume(ctx, repo, r.Dir, &d, name)
		case d.isOwn():
			err = putFile(ctx, repo, diskPath(r.Dir, d.ID), name)
		case d.Kind == tree && !d.ReadOnly:
			err = w.putTree(ctx, repo, filepath.Join(diskPath(r.Dir, d.ID), "upper"), name)
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("disk %d: %w", d.ID, err)
		}
		m.Files = append(m.Files, file)
	}
	for _, file := range extra {
		name := extraPrefix + filepath.Base(file)
		if err := putFile(ctx, repo, file, path.Join(stashDir(r.ID), name)); err != nil {
			return err
		}
		m.Files = append(m.Files, stashed{Name: name, Disk: -1})
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	out, err := repo.Create(ctx, path.Join(stashDir(r.ID), manifestName))
	if err != nil {
		return err
	}
	if _, err := out.WriteAt(text, 0); err != nil {
		return errors.Join(err, out.Abort())
	}
	if err := out.Commit(ctx); err != nil {
		return errors.Join(err, out.Abort())
	}
	return nil
}

// putFile gives a file a second name in the repository, or copies it there.
func putFile(ctx context.Context, repo repository.Repository, file, name string) error {
	if linker, ok := repo.(repository.Linker); ok {
		if err := syncFile(file); err != nil {
			return err
		}
		err := linker.LinkIn(ctx, file, name)
		if !fault.Is(err, fault.Unsupported) {
			return err
		}
	}
	out, err := repo.Create(ctx, name)
	if err != nil {
		return err
	}
	if err := copyFile(ctx, file, out); err != nil {
		return errors.Join(err, out.Abort())
	}
	if err := out.Commit(ctx); err != nil {
		return errors.Join(err, out.Abort())
	}
	return nil
}

// copyFile copies a local file sparsely.
func copyFile(ctx context.Context, path string, out repository.Writer) error {
	var c holding
	err := c.openFile(path)
	defer c.Close()
	if err == nil {
		err = out.SetSize(c.size)
	}
	if err == nil {
		_, _, err = image.Scan(ctx, out, c, c.size, nil)
	}
	return err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (w *Way) putTree(ctx context.Context, repo repository.Repository, upper, name string) error {
	out, err := repo.Create(ctx, name)
	if err != nil {
		return err
	}
	skipped, err := archive.PackOwn(ctx, &appender{w: out}, upper)
	if err != nil {
		return errors.Join(err, out.Abort())
	}
	if len(skipped) > 0 {
		w.config.Log.Info("sockets not stashed", "object", name, "paths", skipped)
	}
	if err := out.Commit(ctx); err != nil {
		return errors.Join(err, out.Abort())
	}
	return nil
}

func readManifest(ctx context.Context, repo repository.Repository, machine int) (*manifest, error) {
	src, err := repo.Open(ctx, path.Join(stashDir(machine), manifestName))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	text := make([]byte, min(src.Size(), 1<<20))
	if n, err := src.ReadAt(text, 0); n < len(text) {
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "manifest of machine %d: %w", machine, err)
	}
	for _, f := range m.Files {
		if err := image.CheckName(f.Name); err != nil {
			return nil, fault.Errorf(fault.Corrupt, "manifest of machine %d: %w", machine, err)
		}
	}
	return m, nil
}

// DropStash implements disk.Way.
func (w *Way) DropStash(ctx context.Context, machine int, from disk.Repository) error {
	unlock, err := w.lock(ctx, machineTurn(machine))
	if err != nil {
		return err
	}
	defer unlock()
	repo, err := w.open(from)
	if err == nil {
		err = dropStash(ctx, repo, machine)
	}
	if err != nil {
		return fmt.Errorf("machine %d: drop stash: %w", machine, err)
	}
	return nil
}

// dropStash deletes the manifest first: a stash without one is nothing.
func dropStash(ctx context.Context, repo repository.Repository, machine int) error {
	names := []string{path.Join(stashDir(machine), manifestName)}
	list, err := repo.List(ctx, stashDir(machine)+"/")
	if err != nil {
		return err
	}
	for _, info := range list {
		names = append(names, info.Name)
	}
	for _, name := range names {
		if err := repo.Delete(ctx, name); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	if sweeper, ok := repo.(repository.Sweeper); ok {
		return sweeper.Sweep(ctx, stashDir(machine)+"/")
	}
	return nil
}

// Unstash implements disk.Way. The stash stays whole until DropStash, so that another host can still take it up.
func (w *Way) Unstash(ctx context.Context, r disk.Request, stash disk.Repository, report func(disk.Progress)) (disk.Prepared, error) {
	unlock, err := w.lock(ctx, machineTurn(r.Machine))
	if err != nil {
		return disk.Prepared{}, err
	}
	defer unlock()
	repo, err := w.open(stash)
	if err != nil {
		return disk.Prepared{}, err
	}
	m, err := readManifest(ctx, repo, r.Machine)
	if err != nil {
		return disk.Prepared{}, fmt.Errorf("machine %d: unstash: %w", r.Machine, err)
	}
	var back undo.Stack
	from := arrival{kinds: map[int]kind{}}
	for _, f := range m.Files {
		if f.Kind != "" {
			from.kinds[f.Disk] = f.Kind
		}
	}
	from.bring = func(p *preparation) error {
		for _, f := range m.Files {
			if err := p.bringBack(ctx, repo, f); err != nil {
				return fmt.Errorf("unstash %s: %w", f.Name, err)
			}
		}
		return nil
	}
	p, err := w.prepare(ctx, r, report, &back, from)
	if err != nil {
		return disk.Prepared{}, errors.Join(err, back.Run())
	}
	return p, nil
}

// bringBack copies one file of a stash to its place, unless it is there.
func (p *preparation) bringBack(ctx context.Context, repo repository.Repository, f stashed) error {
	target := filepath.Join(p.request.Dir, f.Name[min(len(extraPrefix), len(f.Name)):])
	if f.Disk >= 0 {
		if p.record.disk(f.Disk) == nil {
			return fault.Errorf(fault.Invalid, "disk %d is in the stash and not in the request", f.Disk)
		}
		target = diskPath(p.request.Dir, f.Disk)
	}
	d := p.record.disk(f.Disk)
	isVolume := d != nil && d.Volume != ""
	if isVolume && d.Made {
		return nil
	}
	if _, err := os.Lstat(target); err == nil && !isVolume {
		return nil
	}
	src, err := repo.Open(ctx, path.Join(stashDir(p.request.Machine), f.Name))
	if err != nil {
		return err
	}
	defer src.Close()
	step := disk.Progress{Step: "unstash " + f.Name, Total: src.Size()}
	if f.Tree {
		return p.bringTree(ctx, src, target)
	}
	if isVolume {
		return p.bringVolume(ctx, src, d, p.reporter(step.Step))
	}
	now := src.Size()
	if d != nil && (d.Kind == volatile || d.Kind == copied) {
		now = 0 // promised already, and mostly holes
	}
	reservation, err := p.way.store.Reserve(ctx, "stash", 0, now)
	if err != nil {
		return err
	}
	defer reservation.Release()
	return p.newFile(target, func(out *os.File) error {
		if c, ok := src.(repository.Reflinker); ok {
			if err := c.CloneTo(out); !fault.Is(err, fault.Unsupported) {
				return err
			}
		}
		if err := out.Truncate(src.Size()); err != nil {
			return err
		}
		_, stored, err := image.Scan(ctx, out, src, src.Size(), func(done int64) {
			step.Done = done
			p.progress(step)
		})
		p.result.RepositoryBytes += stored
		return err
	})
}

func (p *preparation) bringTree(ctx context.Context, src repository.Source, dir string) error {
	part := dir + ".part"
	if err := removeAll(part); err != nil {
		return err
	}
	p.back.Push(func() error { return removeAll(part) })
	for _, sub := range []string{"", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(part, sub), 0o700); err != nil {
			return err
		}
	}
	reservation, err := p.way.store.Reserve(ctx, "stash", 0, 0)
	if err != nil {
		return err
	}
	defer reservation.Release()
	content := bufio.NewReaderSize(io.NewSectionReader(src, 0, src.Size()), 1<<20)
	_, err = archive.Unpack(ctx, content, filepath.Join(part, "upper"), archive.Options{
		Name: filepath.Base(dir), Size: maxTreeBytes, Members: maxTreeMembers, Own: true,
	}, func(size int64) error { return reservation.Grow(ctx, size) })
	if err != nil {
		return err
	}
	p.result.RepositoryBytes += src.Size()
	if err := syncTree(part); err != nil { // the stash may go as soon as this is done
		return err
	}
	if err := durable.Rename(part, dir); err != nil {
		return err
	}
	p.back.Push(func() error { return removeAll(dir) })
	return nil
}

// syncTree makes a directory with all that is in it durable.
func syncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
