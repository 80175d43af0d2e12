package rbd

import (
	"context"
	"encoding/json"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// Names of the locks on an image's header, and cookies of those who hold them for a moment, which end by themselves
// when they die. The cookie of an owner is its generation.
const (
	ownerLock     = "hayloft.owner"
	undrainedLock = "hayloft.undrained"
	deleting      = "deleting"
	taking        = "taking"
	claimSeconds  = "120"
)

// holder is who has a lock.
type holder struct {
	Name        string `json:"name"` // client.NUMBER
	Cookie      string `json:"cookie"`
	Description string `json:"description"`
}

// held reads a lock; fault.NotFound when nobody has it.
func (r *Repository) held(ctx context.Context, i rbdImage, lock string) (holder, error) {
	out, err := r.rados(ctx, "lock", "info", i.header(), lock, "--format", "json")
	if err != nil {
		return holder{}, err
	}
	var info struct {
		Lockers []holder `json:"lockers"`
	}
	if err := parse("rados lock info", out, &info); err != nil {
		return holder{}, err
	}
	if len(info.Lockers) == 0 {
		return holder{}, fault.Errorf(fault.NotFound, "nobody owns it")
	}
	return info.Lockers[0], nil
}

// lock takes a lock: fault.Busy when somebody has it. seconds "0": until it is broken.
func (r *Repository) lock(ctx context.Context, i rbdImage, lock, cookie, description, seconds string) error {
	_, err := r.rados(ctx, "lock", "get", i.header(), lock, "--lock-type", "exclusive", "--lock-cookie", cookie,
		"--lock-description", description, "--lock-duration", seconds)
	return err
}

// unlock breaks a lock that h has; nothing happens when it is not h's any more.
func (r *Repository) unlock(ctx context.Context, i rbdImage, lock string, h holder) error {
	_, err := r.rados(ctx, "lock", "break", i.header(), lock, h.Name, "--lock-cookie", h.Cookie)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return err
}

// claim takes a lock for the time of one operation: fault.Busy says who has it.
func (r *Repository) claim(ctx context.Context, i rbdImage, lock, cookie string) error {
	err := r.lock(ctx, i, lock, cookie, "{}", claimSeconds)
	if !fault.Is(err, fault.Busy) {
		return err
	}
	m, unknown := r.mark(ctx, i)
	if unknown != nil {
		return fault.Errorf(fault.Busy, "is being taken, given back or deleted by another operation")
	}
	return m.Busy()
}

// unclaim is the opposite of claim.
func (r *Repository) unclaim(ctx context.Context, i rbdImage, lock, cookie string) error {
	h, err := r.held(ctx, i, lock)
	if fault.Is(err, fault.NotFound) || err == nil && h.Cookie != cookie {
		return nil
	}
	if err != nil {
		return err
	}
	return r.unlock(ctx, i, lock, h)
}

// ownership is the mark of an image, and the lock that it is.
type ownership struct {
	repository.Mark
	holder
}

// owned reads who owns an image: fault.NotFound for nobody.
func (r *Repository) owned(ctx context.Context, i rbdImage) (ownership, error) {
	h, err := r.held(ctx, i, ownerLock)
	if err != nil {
		return ownership{}, err
	}
	o := ownership{holder: h}
	if h.Cookie == deleting {
		return o, fault.Errorf(fault.Busy, "is being deleted")
	}
	if err := json.Unmarshal([]byte(h.Description), &o.Mark); err != nil || strconv.FormatUint(o.Generation, 10) != h.Cookie {
		o.Mark = repository.Mark{}
		return o, fault.Errorf(fault.Corrupt, "owner's lock of %s: cookie %q, description %q", h.Name, h.Cookie, h.Description)
	}
	return o, nil
}

// mark is what repository.Writable calls so.
func (r *Repository) mark(ctx context.Context, i rbdImage) (repository.Mark, error) {
	o, err := r.owned(ctx, i)
	if err != nil {
		return repository.Mark{}, err
	}
	h, err := r.held(ctx, i, undrainedLock)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return repository.Mark{}, err
	}
	o.Undrained = err == nil && h.Cookie == o.Cookie
	return o.Mark, nil
}
