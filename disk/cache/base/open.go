package base

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"

	"hayloft/cloud/fault"
	"hayloft/disk/cache/storage"
	"hayloft/disk/localstore"
)

const dataFile = localstore.DataFile

// openFiles finds out what of the image is here.
func (b *base) openFiles(ctx context.Context) error {
	for i := range b.chunks {
		if i&0xffff == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if b.index.IsZero(i) {
			b.here.set(i)
			continue
		}
		_, length := b.index.Range(i)
		b.total += int64(length)
	}
	if b.capacity >= b.total {
		b.capacity = 0
	}
	done, err := b.openComplete()
	if done || err != nil {
		return err
	}
	b.fresh = newBitmap(b.chunks)
	if b.capacity > 0 {
		b.used, b.stored = newBitmap(b.chunks), newBitmap(b.chunks)
	}
	header, err := mapHeader(b.index)
	if err != nil {
		return err
	}
	b.presence = newPresence(header, b.chunks)
	ok, err := b.openPartial()
	if err == nil && !ok {
		err = b.begin()
	}
	if err == nil && b.capacity > 0 {
		b.kept.Store(b.bytes.Load())
		if err := b.punchStray(); err != nil {
			b.degrade("punch", err)
		}
	}
	return err
}

// openComplete opens a base whose mark says that it is whole. A mark that does not fit its data is removed.
func (b *base) openComplete() (bool, error) {
	text, err := readFile(b.dir, localstore.CompleteFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	var mark localstore.Mark
	if json.Unmarshal(text, &mark) != nil || mark.Size != b.size {
		err = fault.Errorf(fault.Corrupt, "the mark of completeness is damaged or that of another image")
	} else {
		b.data, err = b.openData()
	}
	switch {
	case err == nil:
	case fault.Is(err, fault.Corrupt), errors.Is(err, fs.ErrNotExist):
		b.log.Warn("cache is not complete after all, it is filled anew", "image", b.name, "error", err)
		return false, b.unmark()
	default:
		return false, err
	}
	// Whoever made the mark may have died before it was durable, and from now on it counts.
	if err := b.dir.Sync(); err != nil {
		return false, errors.Join(err, b.data.Close())
	}
	for w := range b.here {
		b.here[w].Store(^uint64(0))
	}
	b.whole.Store(true)
	b.capacity = 0
	b.bytes.Store(b.total)
	if err := b.confirm(text); err != nil {
		b.completed = nil // the mark may not be durable
		b.log.Warn("cannot remove the traces of filling the cache", "image", b.name, "error", err)
	}
	return true, nil
}

// unmark takes a mark away that is not right. Should the removal not be durable, another is there that is not right.
func (b *base) unmark() error {
	if err := replaceFile(b.dir, localstore.CompleteFile, []byte("{}")); err != nil {
		return err
	}
	return errors.Join(b.dir.Remove(localstore.CompleteFile), b.dir.Sync())
}

// confirm goes on where a crash stopped the one who had just written the mark: while the map is there, the mark may
// not be durable.
func (b *base) confirm(mark []byte) error {
	names, err := b.dir.Names()
	if err != nil {
		return err
	}
	if slices.Contains(names, localstore.PresentFile) {
		if err := replaceFile(b.dir, localstore.CompleteFile, mark); err != nil {
			return err
		}
	} else if !slices.Contains(names, localstore.PartialFile) {
		return nil
	}
	return b.tidy()
}

// openData opens the data file: fault.Corrupt when its length is not the image's.
func (b *base) openData() (storage.File, error) {
	f, err := b.dir.Open(dataFile)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil && size != b.size {
		err = fault.Errorf(fault.Corrupt, "data file has %d bytes instead of %d", size, b.size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openPartial opens data and map; ok is false when there are none of this image.
func (b *base) openPartial() (ok bool, err error) {
	file, err := b.dir.Open(localstore.PresentFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	lost, err := b.presence.load(file)
	if err == nil {
		b.data, err = b.openData()
	}
	if err != nil {
		err = errors.Join(err, file.Close())
		if fault.Is(err, fault.Corrupt) || errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("cache cannot be used, it is filled anew", "image", b.name, "error", err)
			return false, nil
		}
		return false, err
	}
	if lost > 0 {
		b.log.Warn("presence map is damaged, what it does not say is fetched again", "image", b.name, "blocks", lost, "of", b.presence.blocks())
	}
	for i := range b.chunks {
		if b.presence.has(i) && !b.here.set(i) {
			_, length := b.index.Range(i)
			b.bytes.Add(int64(length))
			if b.stored != nil {
				b.stored.set(i)
			}
		}
	}
	if b.bytes.Load() == 0 { // as good as new, and perhaps half made
		return false, b.closeFiles()
	}
	// A process that was killed may have left bits and names that are not durable, even after a sync that failed and
	// one that did not. What is here now must be here after a power cut, too; and what is not claimed now, and may be
	// punched, must not be claimed again. So the map is written once more.
	for block := range b.presence.blocks() {
		b.presence.dirty[block] = struct{}{}
	}
	if err := errors.Join(b.presence.write(), b.dir.Sync()); err != nil {
		return false, errors.Join(err, b.closeFiles())
	}
	return true, nil
}

// begin makes an empty cache. The map that claims nothing is there, durably, before the data is touched.
func (b *base) begin() error {
	b.presence = newPresence(b.presence.header, b.chunks)
	if err := b.beginMap(); err != nil {
		return err
	}
	var err error
	if b.data, err = b.dir.Create(dataFile); err == nil {
		err = b.data.Truncate(b.size)
	}
	if err == nil {
		err = b.data.Sync()
	}
	if err == nil {
		err = b.dir.Sync()
	}
	if err != nil {
		return errors.Join(err, b.closeFiles())
	}
	return nil
}

// beginMap makes a map that claims nothing.
func (b *base) beginMap() error {
	part := localstore.PresentFile + ".part"
	file, err := b.dir.Create(part)
	if err != nil {
		return err
	}
	if err = b.presence.create(file); err == nil {
		err = b.dir.Rename(part, localstore.PresentFile)
	}
	if err == nil {
		err = b.dir.Sync()
	}
	if err != nil {
		b.presence.file = nil
		return errors.Join(err, file.Close(), b.dir.Remove(part))
	}
	return nil
}

func (b *base) closeFiles() error {
	var errs []error
	if b.presence != nil && b.presence.file != nil {
		errs = append(errs, b.presence.file.Close())
	}
	if b.data != nil {
		errs = append(errs, b.data.Close())
	}
	return errors.Join(errs...)
}

// readFile reads a small file.
func readFile(dir storage.Dir, name string) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	p := make([]byte, min(size, 4096))
	if n, err := f.ReadAt(p, 0); n < len(p) {
		return nil, err
	}
	return p, nil
}
