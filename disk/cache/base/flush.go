package base

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache/storage"
	"hayloft/disk/localstore"
)

const (
	flushEvery = 2 * time.Second
	idleSource = time.Minute
)

// flusher makes what arrived durable now and then, and the base complete when all is here. It runs until the base
// is complete or closed.
func (b *base) flusher() {
	defer b.work.Done()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		err := b.Sync()
		if b.whole.Load() {
			if b.completed != nil {
				b.completed()
			}
			return
		}
		kicks := b.kick
		if err != nil {
			kicks = nil // what failed is not repeated at once
		}
		select {
		case <-kicks:
		case <-tick.C:
			b.source.closeIdle(idleSource)
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *base) kickFlusher() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// Sync implements cache.Base.
func (b *base) Sync() error {
	b.saving.Lock()
	defer b.saving.Unlock()
	if b.whole.Load() {
		return nil
	}
	err := b.save()
	if err == nil {
		err = b.finish()
	}
	if err != nil {
		return fmt.Errorf("image %s: cache: %w", b.name, err)
	}
	return nil
}

func (b *base) takePending() []int {
	b.pendingMu.Lock()
	defer b.pendingMu.Unlock()
	taken := b.pending
	b.pending, b.pendingBytes = nil, 0
	return taken
}

// save makes data durable, then the map that claims it. b.saving is held.
func (b *base) save() error {
	var arrived []int
	for _, i := range b.takePending() {
		if b.here.has(i) { // and was written before the sync that comes now
			arrived = append(arrived, i)
		}
	}
	if err := b.syncData(arrived); err != nil {
		return err
	}
	for _, i := range arrived {
		b.presence.set(i)
	}
	if err := b.presence.write(); err != nil {
		b.degrade("write the presence map", err)
		return err
	}
	return nil
}

// syncData makes the chunks durable that arrived. When that fails, all that was written since the sync before may be
// lost although a later sync succeeds, and reads may give what was there before.
func (b *base) syncData(arrived []int) error {
	if len(arrived) == 0 {
		return nil
	}
	b.syncs.Add(1)
	defer b.syncs.Add(1)
	err := b.data.Sync()
	if err == nil {
		for _, i := range arrived {
			b.fresh.clear(i)
		}
		return nil
	}
	b.pendingMu.Lock()
	b.syncFailures++
	arrived = append(arrived, b.pending...)
	b.pending, b.pendingBytes = nil, 0
	b.pendingMu.Unlock()
	for _, i := range arrived {
		b.forget(i)
	}
	b.degrade("sync", err)
	return err
}

// finish writes the mark when all chunks are durably here. b.saving is held.
func (b *base) finish() error {
	b.pendingMu.Lock()
	unsynced := len(b.pending)
	b.pendingMu.Unlock()
	if b.bytes.Load() != b.total || unsynced > 0 {
		return nil
	}
	mark, err := json.Marshal(localstore.Mark{Size: b.size, Bytes: b.allocated()})
	if err != nil {
		return err
	}
	if err := replaceFile(b.dir, localstore.CompleteFile, mark); err != nil {
		b.degrade("mark as complete", err)
		return err
	}
	b.whole.Store(true)
	b.log.Info("image is complete on this host", "image", b.name, "bytes", b.total)
	b.source.closeIdle(0)
	_ = b.presence.file.Close() // it is removed
	return b.tidy()
}

// tidy removes what a complete base does not need. What stays because of an error does no harm.
func (b *base) tidy() error {
	return errors.Join(b.dir.Remove(localstore.PresentFile), b.dir.Remove(localstore.PartialFile), b.dir.Sync())
}

// allocated is what the data file takes up, in bytes.
func (b *base) allocated() int64 {
	var st unix.Stat_t
	if b.hasFD && unix.Fstat(int(b.fd), &st) == nil {
		return st.Blocks * 512
	}
	return (b.total + 4095) &^ 4095
}

// replaceFile writes a file so that a crash leaves the old one or the new one.
func replaceFile(dir storage.Dir, name string, content []byte) error {
	part := name + ".part"
	f, err := dir.Create(part)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = dir.Rename(part, name)
	}
	if err != nil {
		return errors.Join(err, dir.Remove(part))
	}
	return dir.Sync()
}
