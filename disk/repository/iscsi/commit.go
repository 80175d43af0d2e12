package iscsi

import (
	"context"
	"strconv"

	"hayloft/cloud/fault"
)

// few bytes are zeroed through the target: less than a program's run at the server takes.
const few = 8 << 20

// Commit implements repository.Writer.
func (w *writer) Commit(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.repository
	if w.ended {
		return r.object(w.name, fault.Errorf(fault.WrongState, "writer has ended"))
	}
	size, failed := w.state()
	if failed == nil {
		failed = ctx.Err()
	}
	if failed != nil {
		return r.object(w.name, failed)
	}
	if err := w.finish(ctx, size); err != nil {
		return w.explain(err)
	}
	w.cancel()
	w.renewals.Wait()
	w.ended = true
	return nil
}

func (w *writer) finish(ctx context.Context, size int64) error {
	r := w.repository
	if w.pool == "" {
		if err := w.zeroRest(ctx, few); err != nil {
			return err
		}
	}
	if err := w.close(true); err != nil {
		return err
	}
	if w.pool == "" {
		if err := w.zeroRest(ctx, -1); err != nil {
			return err
		}
		if err := r.flush(ctx, w.volume); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	now, err := r.now(ctx)
	if err != nil {
		return err
	}
	tags := []string{sizeTag + strconv.FormatInt(size, 10), timeTag + strconv.FormatInt(now, 10), mark{use: free}.tag()}
	if err := w.renew(ctx, lease{now, w.leased().nonce}, tags); err != nil {
		return err
	}
	err = r.tools(ctx).Rename(ctx, r.group, partPrefix+encode(w.name), objectPrefix+encode(w.name))
	if fault.Is(err, fault.NotFound) {
		err = fault.Errorf(fault.Busy, "was removed while it was written: %w", err)
	}
	return err
}

// zeroRest zeros what was never written up to the end of the volume: runs of at most limit bytes through the target, where
// that is open; with limit -1 all, by the server itself.
func (w *writer) zeroRest(ctx context.Context, limit int64) error {
	for offset := int64(0); offset < w.volume.Size; {
		part := w.written.next(offset, w.volume.Size)
		offset = part.end
		length := part.end - part.start
		switch {
		case part.written, limit >= 0 && (w.disk == nil || length > limit):
			continue
		case limit >= 0:
			if _, err := w.disk.WriteAt(make([]byte, length), part.start); err != nil {
				return err
			}
		default:
			if err := w.repository.tools(ctx).Zero(ctx, w.repository.device(w.volume.Name), part.start, length); err != nil {
				return err
			}
		}
		w.written.set(part.start/granule, (part.end+granule-1)/granule)
	}
	return nil
}

// Abort implements repository.Writer.
func (w *writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil
	}
	w.ended = true
	w.cancel()
	w.renewals.Wait()
	if w.disk != nil {
		_ = w.disk.Close()
		_ = w.repository.drop(w.ctx, w.export)
	}
	ctx := context.WithoutCancel(w.ctx) // bounded by the limits of the steps
	return w.repository.object(w.name, w.repository.discard(ctx, w))
}

// discard removes the volume of a writer, wherever it is: a Commit without answer may have been one.
func (r *Repository) discard(ctx context.Context, w *writer) error {
	v, err := r.again(ctx, w.identity)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case v.lease.nonce != w.leased().nonce:
		return nil // another one's now
	}
	if v.Name == objectPrefix+encode(w.name) {
		if done, err := r.setMark(ctx, v, mark{use: deleting}, nil, nil); err != nil || !done {
			return err
		}
	}
	return r.remove(ctx, v)
}
