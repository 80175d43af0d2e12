package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// generationKey is the image-meta that keeps the last generation when nobody owns the image.
const generationKey = "hayloft.generation"

// Own implements repository.Ownable. The path is "" unless ATTACH is kernel.
func (r *Repository) Own(ctx context.Context, name string, owner repository.Owner, uid, gid int) (string, error) {
	if err := repository.CheckName(name); err != nil {
		return "", err
	}
	i, err := r.lookup(ctx, name)
	if err == nil && r.kernel && i.Size%512 != 0 {
		err = fault.Errorf(fault.Unsupported, "has %d bytes: the kernel knows only sectors of 512", i.Size)
	}
	if err == nil {
		err = r.own(ctx, i, owner)
	}
	if err != nil || !r.kernel {
		return "", r.object(name, err)
	}
	path, err := r.attach(ctx, i, uid, gid)
	return path, r.object(name, err)
}

func (r *Repository) own(ctx context.Context, i rbdImage, owner repository.Owner) error {
	for {
		m, err := r.mark(ctx, i)
		switch {
		case err == nil && m.Owner == owner:
			return nil
		case err == nil:
			return m.Busy()
		case !fault.Is(err, fault.NotFound):
			return err
		}
		last, err := r.lastGeneration(ctx, i)
		if err != nil {
			return err
		}
		generation := max(uint64(time.Now().UnixNano()), last+1)
		text, err := json.Marshal(repository.Mark{Owner: owner, Generation: generation})
		if err != nil {
			return err
		}
		err = r.lock(ctx, i, ownerLock, strconv.FormatUint(generation, 10), string(text), "0")
		if fault.Is(err, fault.Busy) {
			continue // somebody was faster: see who
		}
		if err != nil {
			return err
		}
		// Another one may have had it and given it back between the question and the lock.
		last, err = r.lastGeneration(ctx, i)
		if err == nil && last < generation {
			return nil
		}
		if o, lost := r.owned(ctx, i); lost == nil && o.Generation == generation {
			err = errors.Join(err, r.unlock(context.WithoutCancel(ctx), i, ownerLock, o.holder))
		}
		if err != nil {
			return err
		}
	}
}

func (r *Repository) lastGeneration(ctx context.Context, i rbdImage) (uint64, error) {
	out, err := r.rbd(ctx, "image-meta", "get", "--image", i.Name, generationKey)
	if fault.Is(err, fault.NotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	last, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return 0, fault.Errorf(fault.Corrupt, "image-meta %s: %w", generationKey, err)
	}
	return last, nil
}

// release gives an image back. The caller has claimed undrainedLock.
func (r *Repository) release(ctx context.Context, i rbdImage, o ownership) error {
	if o.Generation > 0 { // 0: nobody can tell any more whose it is
		if _, err := r.rbd(ctx, "image-meta", "set", "--image", i.Name, generationKey, o.Cookie); err != nil {
			return err
		}
	}
	return r.unlock(ctx, i, ownerLock, o.holder)
}

// Disown implements repository.Ownable. It is fault.WrongState while the owner has undrained writes.
func (r *Repository) Disown(ctx context.Context, name string, owner repository.Owner) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	i, err := r.lookup(ctx, name)
	if err == nil {
		err = r.disown(ctx, i, owner)
	}
	return r.object(name, err)
}

func (r *Repository) disown(ctx context.Context, i rbdImage, owner repository.Owner) error {
	o, err := r.owned(ctx, i)
	switch {
	case fault.Is(err, fault.NotFound), err == nil && o.Owner != owner:
		return nil
	case err != nil:
		return err
	}
	if err := r.claim(ctx, i, undrainedLock, taking); err != nil {
		if fault.Is(err, fault.Busy) {
			err = fault.As(fault.WrongState, err)
		}
		return err
	}
	if r.kernel {
		err = r.detach(ctx, i)
	}
	if err == nil {
		err = r.release(ctx, i, o)
	}
	return errors.Join(err, r.unclaim(context.WithoutCancel(ctx), i, undrainedLock, taking))
}
