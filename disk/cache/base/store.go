package base

import (
	"errors"

	"hayloft/cloud/fault"
)

// maxPending is how many bytes may have arrived that a restart would not find.
const maxPending = 64 << 20

var errNoRoom = errors.New("no room within the cache's capacity")

// store writes n verified chunks from i into the data file. From then on they are here.
func (b *base) store(i, n int, p []byte) error {
	if err := b.reserve(len(p)); err != nil {
		return fault.As(fault.OutOfSpace, err)
	}
	failures := b.failures()
	offset, _ := b.index.Range(i)
	if _, err := b.data.WriteAt(p, offset); err != nil {
		b.unreserve(len(p))
		b.degrade("write", err)
		return err
	}
	for k := i; k < i+n; k++ {
		b.arrive(k, failures)
	}
	return nil
}

// failures counts the syncs that failed. Each may have lost what was written before.
func (b *base) failures() int64 {
	b.pendingMu.Lock()
	defer b.pendingMu.Unlock()
	return b.syncFailures
}

// arrive has a chunk count as here that was written, unless syncs have failed since there had been that many.
func (b *base) arrive(i int, failures int64) {
	_, length := b.index.Range(i)
	b.pendingMu.Lock()
	defer b.pendingMu.Unlock()
	if b.syncFailures != failures || b.here.has(i) {
		b.unreserve(length)
		return
	}
	b.fresh.set(i)
	if b.stored != nil {
		b.stored.set(i)
	}
	b.here.set(i)
	b.pending = append(b.pending, i)
	b.pendingBytes += int64(length)
	if b.bytes.Add(int64(length)) == b.total || b.pendingBytes >= maxPending {
		b.kickFlusher()
	}
}

// forget has a chunk count as missing: what was written of it may be lost.
func (b *base) forget(i int) {
	if !b.here.clear(i) {
		return
	}
	if b.stored != nil {
		b.stored.clear(i)
	}
	_, length := b.index.Range(i)
	b.bytes.Add(-int64(length))
	b.unreserve(length)
}

// reserve takes n bytes of the capacity, after the least used chunks have gone where there is no room.
func (b *base) reserve(n int) error {
	if b.capacity == 0 {
		return nil
	}
	for {
		kept := b.kept.Load()
		if kept+int64(n) <= b.capacity {
			if b.kept.CompareAndSwap(kept, kept+int64(n)) {
				return nil
			}
			continue
		}
		if int64(n) > b.capacity {
			return errNoRoom
		}
		if err := b.evict(int64(n)); err != nil {
			return err
		}
	}
}

func (b *base) unreserve(n int) {
	if b.capacity > 0 {
		b.kept.Add(-int64(n))
	}
}

// degrade says, the first time, that the local file system does not do its part: what is fetched is handed on
// without being kept.
func (b *base) degrade(what string, err error) {
	if err == nil {
		err = errors.New("file is too short")
	}
	d := &degradation{what, err}
	if b.degraded.CompareAndSwap(nil, d) {
		b.log.Error("cache of image works only in part: what cannot be kept is fetched each time", "image", b.name, "operation", what, "error", err)
	}
}

type degradation struct {
	what string
	err  error
}
