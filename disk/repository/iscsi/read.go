package iscsi

import (
	"context"
	"errors"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
)

// Open implements repository.Repository.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := r.check(name); err != nil {
		return nil, err
	}
	v, err := r.lookup(ctx, name)
	if err != nil {
		return nil, r.object(name, err)
	}
	d, e, err := r.open(ctx, name, reading, v, true, &v.size)
	if err != nil && v.Snapshot { // it may be another volume by now
		if now, lost := r.lookup(ctx, name); lost == nil && now.UUID != v.UUID {
			v = now
			d, e, err = r.open(ctx, name, reading, v, true, &v.size)
		}
	}
	if err != nil {
		return nil, err
	}
	return &source{repository: r, ctx: ctx, name: name, volume: v, export: e, disk: d}, nil
}

// source is an object opened for reading. When the target is gone, with a tgtd that was started anew or because nobody
// used it for long and it was swept, it is made again.
type source struct {
	repository *Repository
	ctx        context.Context // of Open: it bounds every read
	name       string
	volume     volume

	mu     sync.RWMutex // held for reading while requests are under way
	export export
	disk   *qemublock.Disk
	times  int // that disk was opened
	closed bool
}

var _ repository.Extents = (*source)(nil)

func (s *source) Size() int64 { return s.volume.size }

// with does f, and once more when the target was gone meanwhile.
func (s *source) with(f func(*qemublock.Disk) error) error {
	for again := false; ; again = true {
		s.mu.RLock()
		times, err := s.times, f(s.disk)
		s.mu.RUnlock()
		if again || !fault.Is(err, fault.Unavailable) || s.ctx.Err() != nil {
			return err
		}
		if lost := s.renew(times); lost != nil {
			return err
		}
	}
}

var errStays = errors.New("the target is there")

// renew makes the target again, unless it is there or somebody else did.
func (s *source) renew(times int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.times != times {
		return s.ctx.Err()
	}
	r := s.repository
	ctx, cancel := context.WithTimeout(s.ctx, r.limit)
	defer cancel()
	all, err := r.targets(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.name == s.export.name {
			return errStays
		}
	}
	v, err := r.again(ctx, s.volume)
	if err != nil {
		return err
	}
	d, e, err := r.open(s.ctx, s.name, reading, v, true, &s.volume.size)
	if err != nil {
		return err
	}
	_ = s.disk.Close()
	s.disk, s.export = d, e
	s.times++
	return nil
}

func (s *source) ReadAt(p []byte, offset int64) (n int, err error) {
	err = s.with(func(d *qemublock.Disk) (err error) {
		n, err = d.ReadAt(p, offset)
		return err
	})
	return n, err
}

// NextData implements repository.Extents.
func (s *source) NextData(offset int64) (start, end int64, err error) {
	err = s.with(func(d *qemublock.Disk) (err error) {
		start, end, err = d.NextData(offset)
		return err
	})
	return start, end, err
}

// Close takes the target away.
func (s *source) Close() error {
	s.mu.RLock()
	err := s.disk.Close() // ends requests under way
	s.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	_ = s.disk.Close()
	_ = s.repository.drop(s.ctx, s.export) // else it is Sweep's
	return err
}
