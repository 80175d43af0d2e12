package rbd

import (
	"context"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
)

// Stat implements repository.Repository.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Info{}, err
	}
	i, err := r.lookup(ctx, name)
	if err != nil {
		return repository.Info{}, r.object(name, err)
	}
	return repository.Info{Name: name, Size: i.Size, Modified: i.modified()}, nil
}

// listed is one line of "rbd ls -l": an image or a snapshot.
type listed struct {
	Image    string `json:"image"`
	ID       string `json:"id"`
	Snapshot string `json:"snapshot"`
	Size     int64  `json:"size"`
}

// all lists images and snapshots that are ours.
func (r *Repository) all(ctx context.Context) ([]listed, error) {
	var (
		list  []listed
		ids   []string
		group errgroup.Group
	)
	group.Go(func() error { return r.ask(ctx, &list, "ls", "-l") })
	group.Go(func() (err error) {
		ids, err = r.registered(ctx)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(l listed) bool {
		_, ours := slices.BinarySearch(ids, l.ID)
		return !ours
	}), nil
}

// List implements repository.Repository. The times of modification are not told: each would take a program's run.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	all, err := r.all(ctx)
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
	}
	var list []repository.Info
	for _, l := range all {
		if name, ok := decode(l.Image); ok && l.Snapshot == "" && strings.HasPrefix(name, prefix) {
			list = append(list, repository.Info{Name: name, Size: l.Size})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// Capacity implements repository.Repository: that of the pool, with its quota, for bytes as stored once.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	c, err := r.capacity(ctx)
	if err != nil {
		return c, fault.Errorf(fault.ClassOf(err), "%s: %w", r.label, err)
	}
	return c, nil
}

func (r *Repository) capacity(ctx context.Context) (disk.Capacity, error) {
	out, err := r.run(ctx, r.limit, "ceph", "df", "detail", "--format", "json")
	if err != nil {
		return disk.Capacity{}, err
	}
	var df struct {
		Pools []struct {
			Name  string `json:"name"`
			Stats struct {
				Stored    int64 `json:"stored"`
				Available int64 `json:"max_avail"`
				Quota     int64 `json:"quota_bytes"`
			} `json:"stats"`
		} `json:"pools"`
	}
	if err := parse("ceph df", out, &df); err != nil {
		return disk.Capacity{}, err
	}
	for _, p := range df.Pools {
		if p.Name != r.pool {
			continue
		}
		total := p.Stats.Stored + p.Stats.Available
		if q := p.Stats.Quota; q > 0 {
			total = min(total, q)
		}
		return disk.Capacity{Total: total, Used: p.Stats.Stored, Free: max(0, total-p.Stats.Stored)}, nil
	}
	return disk.Capacity{}, fault.Errorf(fault.Unavailable, "there is no pool %q", r.pool)
}

// full asks whether the pool takes no more: writes to one that is full wait, without an error.
func (r *Repository) full(ctx context.Context) bool {
	out, err := r.run(ctx, r.limit, "ceph", "osd", "pool", "ls", "detail", "--format", "json")
	if err != nil {
		return false
	}
	var pools []struct {
		Name  string `json:"pool_name"`
		Flags string `json:"flags_names"`
	}
	if parse("ceph osd pool ls", out, &pools) != nil {
		return false
	}
	for _, p := range pools {
		if p.Name == r.pool {
			return slices.ContainsFunc(strings.Split(p.Flags, ","), func(flag string) bool { return flag == "full" || flag == "full_quota" })
		}
	}
	return false
}
