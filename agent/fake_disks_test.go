package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
)

type fakeWay struct{ *life }

func (l fakeWay) Prepare(ctx context.Context, r disk.Request, report func(disk.Progress)) (disk.Prepared, error) {
	if fail := l.w.prepare; fail != nil {
		if err := fail(ctx, r); err != nil {
			return disk.Prepared{}, err
		}
	}
	leave, err := l.enter(ctx)
	if err != nil {
		return disk.Prepared{}, err
	}
	defer leave()
	if _, ok := l.w.disks[r.Machine]; !ok {
		l.w.did(r.Machine, "prepare")
		l.w.disks[r.Machine] = "new"
	}
	return l.prepared(r)
}

func (l fakeWay) prepared(r disk.Request) (disk.Prepared, error) {
	dir := filepath.Join(r.Dir, "disks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return disk.Prepared{}, err
	}
	p := disk.Prepared{RepositoryBytes: 100, GivenBytes: 1000}
	for _, d := range r.Disks {
		p.Devices = append(p.Devices, device.Device{Kind: device.File, Path: filepath.Join(dir, fmt.Sprint(d.ID)), Format: device.Raw})
	}
	for i, f := range r.Files {
		path := filepath.Join(dir, fmt.Sprint("file", i))
		if err := os.WriteFile(path, []byte(f.Name), 0o600); err != nil {
			return p, err
		}
		p.Files = append(p.Files, path)
	}
	return p, nil
}

func (l fakeWay) Remove(ctx context.Context, machine int, dir string) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, ok := l.w.disks[machine]; ok {
		if l.w.undrained[machine] > 0 {
			return fault.Errorf(fault.WrongState, "machine %d has undrained writes", machine)
		}
		l.w.did(machine, "remove")
		delete(l.w.disks, machine)
	}
	return os.RemoveAll(filepath.Join(dir, "disks"))
}

func (l fakeWay) SaveAs(ctx context.Context, machine int, _ string, spec disk.Spec, to disk.Repository, name string, _ func(disk.Progress)) (disk.Saved, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return disk.Saved{}, err
	}
	defer leave()
	if _, ok := l.w.disks[machine]; !ok {
		return disk.Saved{}, fmt.Errorf("machine %d has no disks", machine)
	}
	l.w.did(machine, "saveas-"+name)
	return disk.Saved{Digest: "blake3:" + name, Size: 5, Format: "raw"}, nil
}

func (l fakeWay) Stash(ctx context.Context, machine int, dir string, extra []string, to disk.Repository) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	content, here := l.w.disks[machine]
	if !here {
		if l.w.stashes[machine] != nil {
			return nil
		}
		return fmt.Errorf("machine %d has no disks", machine)
	}
	if l.w.undrained[machine] > 0 {
		return fault.Errorf(fault.WrongState, "machine %d has undrained writes", machine)
	}
	stash := map[string]string{"disks": content}
	for _, path := range extra {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		stash[filepath.Base(path)] = string(content)
	}
	l.w.stashes[machine] = stash
	delete(l.w.disks, machine)
	for _, path := range extra {
		os.Remove(path)
	}
	l.w.did(machine, fmt.Sprintf("stash(%s)", strings.Join(slices.Sorted(maps.Keys(stash)), ",")))
	return nil
}

func (l fakeWay) Unstash(ctx context.Context, r disk.Request, from disk.Repository, report func(disk.Progress)) (disk.Prepared, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return disk.Prepared{}, err
	}
	defer leave()
	stash := l.w.stashes[r.Machine]
	if stash == nil {
		return disk.Prepared{}, fault.Errorf(fault.NotFound, "machine %d has no stash", r.Machine)
	}
	for name, content := range stash {
		if name == "disks" {
			if l.w.disks[r.Machine] != content {
				l.w.did(r.Machine, "unstash")
			}
			l.w.disks[r.Machine] = content
		} else if err := os.WriteFile(filepath.Join(r.Dir, name), []byte(content), 0o600); err != nil {
			return disk.Prepared{}, err
		}
	}
	return l.prepared(r)
}

func (l fakeWay) DropStash(ctx context.Context, machine int, from disk.Repository) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if l.w.stashes[machine] == nil {
		return fault.Errorf(fault.NotFound, "machine %d has no stash", machine)
	}
	l.w.did(machine, "dropstash")
	delete(l.w.stashes, machine)
	return nil
}

func (l fakeWay) Resize(ctx context.Context, machine int, _ string, id int, size int64) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	l.w.did(machine, fmt.Sprintf("resize-%d-%d", id, size))
	return nil
}

func (l fakeWay) Capacity(context.Context) (disk.Capacity, error) {
	return disk.Capacity{Total: 100, Free: 50, Used: 50}, nil
}
func (l fakeWay) Bases(context.Context) ([]disk.Base, error) {
	return []disk.Base{{Digest: "blake3:base", Complete: true}}, nil
}
func (l fakeWay) Settle(ctx context.Context, machine int, _ bool, report func(disk.Progress)) error {
	l.w.mu.Lock()
	fail, left := l.w.settle, l.w.undrained[machine]
	l.w.mu.Unlock()
	if left > 0 {
		report(disk.Progress{Step: "disk 0", Done: 1, Total: left})
		if fail != nil {
			if err := fail(ctx); err != nil {
				return err
			}
		}
	}
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if l.w.undrained[machine] > 0 {
		l.w.did(machine, "drain")
		delete(l.w.undrained, machine)
	}
	return nil
}

func (l fakeWay) Caches(_ context.Context, machine int) ([]disk.Cache, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return []disk.Cache{{Disk: 0, Mode: "BACK", Cached: 5, Total: 10, Undrained: l.w.undrained[machine], Error: l.w.away}}, nil
}

func (l fakeWay) Prefetch(ctx context.Context, i disk.Image, rate int64, report func(disk.Progress)) error {
	l.w.mu.Lock()
	fetching := l.w.fetching
	l.w.mu.Unlock()
	if fetching != nil {
		if err := fetching(ctx, i, report); err != nil {
			return err
		}
	}
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	report(disk.Progress{Done: 8, Total: 8})
	l.w.fetched = append(l.w.fetched, fmt.Sprintf("%s@%d", i.Name, rate))
	return nil
}

func (l fakeWay) Machines(context.Context) ([]int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return slices.Sorted(maps.Keys(l.w.disks)), nil
}
