package iscsi

import (
	"context"
	"strconv"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// possessed is fault.Busy unless owner has the volume in that generation.
func possessed(v volume, owner repository.Owner, generation uint64) error {
	switch m := v.mark; {
	case !m.taken():
		return fault.Errorf(fault.Busy, "was taken from machine %d on host %s", owner.Machine, owner.Host)
	case m.owner != owner:
		return m.public().Busy()
	case m.generation != generation:
		return fault.Errorf(fault.Busy, "was taken again: generation %d is over, it is %d now", generation, m.generation)
	}
	return nil
}

// change looks an object up and replaces its mark by what to makes of it, until nobody else was faster. It does nothing when
// to gives the mark that is there.
func (r *Repository) change(ctx context.Context, name string, to func(volume) (mark, error)) (volume, error) {
	for {
		v, err := r.lookup(ctx, name)
		if err != nil {
			return v, err
		}
		m, err := to(v)
		if err != nil || m == v.mark {
			return v, err
		}
		now, err := r.now(ctx)
		if err != nil {
			return v, err
		}
		done, err := r.setMark(ctx, v, m, []string{timeTag + strconv.FormatInt(v.modified.Unix(), 10)}, []string{timeTag + strconv.FormatInt(now, 10)})
		if v.mark = m; err != nil || done {
			return v, err
		}
	}
}

// Own implements repository.Ownable. The path is "" unless ATTACH is kernel.
func (r *Repository) Own(ctx context.Context, name string, owner repository.Owner, uid, gid int) (string, error) {
	if err := r.check(name); err != nil {
		return "", err
	}
	v, err := r.change(ctx, name, func(v volume) (mark, error) {
		switch m := v.mark; {
		case r.kernel && v.size != v.Size:
			return m, fault.Errorf(fault.Unsupported, "has %d bytes, its volume %d: the kernel sees only whole volumes, in extents of the group", v.size, v.Size)
		case m.use == deleting:
			return m, fault.Errorf(fault.Busy, "is being deleted")
		case m.taken() && m.owner == owner:
			return m, nil
		case m.taken():
			return m, m.public().Busy()
		default:
			return mark{owned, max(uint64(time.Now().UnixNano()), m.generation+1), owner}, nil
		}
	})
	if err != nil || !r.kernel {
		return "", r.object(name, err)
	}
	path, err := r.attach(ctx, v, uid, gid)
	return path, r.object(name, err)
}

// Disown implements repository.Ownable. It is fault.WrongState while the owner has undrained writes.
func (r *Repository) Disown(ctx context.Context, name string, owner repository.Owner) error {
	if err := r.check(name); err != nil {
		return err
	}
	if r.kernel {
		v, err := r.lookup(ctx, name)
		if err == nil && v.mark.use == owned && v.mark.owner == owner {
			err = r.detach(ctx, v)
		}
		if err != nil {
			return r.object(name, err)
		}
	}
	_, err := r.change(ctx, name, func(v volume) (mark, error) {
		switch m := v.mark; {
		case !m.taken() || m.owner != owner:
			return m, nil
		case m.use == undrained:
			return m, fault.As(fault.WrongState, m.public().Busy())
		default:
			return mark{use: free, generation: m.generation}, nil
		}
	})
	return r.object(name, err)
}

// Marked implements repository.Writable.
func (r *Repository) Marked(ctx context.Context, name string) (repository.Mark, error) {
	if err := r.check(name); err != nil {
		return repository.Mark{}, err
	}
	v, err := r.lookup(ctx, name)
	if err == nil && !v.mark.taken() {
		err = fault.Errorf(fault.NotFound, "nobody owns it")
	}
	if err != nil {
		return repository.Mark{}, r.object(name, err)
	}
	return v.mark.public(), nil
}

// SetUndrained implements repository.Writable.
func (r *Repository) SetUndrained(ctx context.Context, name string, owner repository.Owner, generation uint64, yes bool) error {
	if err := r.check(name); err != nil {
		return err
	}
	_, err := r.change(ctx, name, func(v volume) (mark, error) {
		m := v.mark
		m.use = owned
		if yes {
			m.use = undrained
		}
		return m, possessed(v, owner, generation)
	})
	return r.object(name, err)
}

// Break implements repository.Writable. An object that nobody owns is fine.
func (r *Repository) Break(ctx context.Context, name string, acceptStale bool) error {
	if err := r.check(name); err != nil {
		return err
	}
	v, err := r.change(ctx, name, func(v volume) (mark, error) {
		switch m := v.mark; {
		case !m.taken():
			return m, nil
		case m.use == undrained && !acceptStale:
			return m, m.public().Busy()
		default:
			return mark{use: free, generation: m.generation}, nil
		}
	})
	if err == nil { // also what an earlier Break did not come to
		err = r.fence(ctx, v, func(p place) bool { return p.generation > v.mark.generation })
	}
	return r.object(name, err)
}
