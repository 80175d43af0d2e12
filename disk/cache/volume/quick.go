package volume

import (
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
)

// TryReadAt implements export.Quick.
func (v *volume) TryReadAt(p []byte, offset int64) (done bool, err error) {
	if v.quit.Load() || len(p) == 0 || v.check(offset, int64(len(p))) != nil {
		return false, nil
	}
	switch v.mode {
	case cache.Offline:
		done = v.offline.tryRead(p, offset)
	case cache.Back:
		done = v.back.tryRead(p, offset)
	default:
		done, _ = v.cached(p, offset) // trouble is for the slow way
	}
	if done {
		first, last := chunksIn(offset, int64(len(p)))
		v.hits.Add(last - first)
	}
	return done, nil
}

// TryWriteAt implements export.Quick.
func (v *volume) TryWriteAt(p []byte, offset int64) (done bool, err error) {
	if v.quit.Load() || len(p) == 0 || v.check(offset, int64(len(p))) != nil {
		return false, nil
	}
	switch v.mode {
	case cache.Offline:
		return v.offline.tryWrite(p, offset)
	case cache.Back:
		return v.back.tryWrite(p, offset), nil // trouble is for the slow way
	}
	return false, nil
}

// TryFile implements export.Quick. Chunks that may be evicted are not handed out: their space may be given back
// before the reply is on its way.
func (v *volume) TryFile(offset int64, length int) (fd uintptr, at int64, ok bool) {
	d, isFile := v.data.(storage.Descriptor)
	if !isFile || v.quit.Load() || length <= 0 || v.check(offset, int64(length)) != nil || v.residents.limit >= 0 {
		return 0, 0, false
	}
	first, last := chunksIn(offset, int64(length))
	if !v.present.hasAll(first, last) || v.mode == cache.Back && v.back.dirtyIn(offset, int64(length)) {
		return 0, 0, false
	}
	v.hits.Add(last - first)
	return d.Fd(), offset, true
}
