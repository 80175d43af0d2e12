package bcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
)

// catchUp has the source get what the cache holds for clean and the source may have lost: bcache takes what it wrote back for
// clean, and remembers so, without a FLUSH of the source. A power cut then finds a source that lacks it, and a cache with
// nothing to do. So when the kernel has a cache in mode BACK again, before anybody has the device, what it shows is compared
// with the source, and written there where the two differ. It reads all of the image. A source that has no write cache of its
// own loses nothing and is left alone.
func (k kernel) catchUp(ctx context.Context, s kernelcache.Spec, bcache string, h local.Header) (err error) {
	if !hasWriteCache(s.Source) {
		return nil
	}
	from, err := os.OpenFile(bcache, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(s.Source, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	const piece = 1 << 20
	// Pages of the kernel's are aligned as O_DIRECT wants them.
	p, err := unix.Mmap(-1, 0, 2*piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(p)) }()
	written := int64(0)
	for offset := int64(0); offset < h.Source; offset += piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(piece, h.Source-offset)
		cached, source := p[:n], p[piece:piece+n]
		if _, err := from.ReadAt(cached, offset); err != nil {
			return err
		}
		if _, err := to.ReadAt(source, offset); err != nil {
			return err
		}
		if bytes.Equal(cached, source) {
			continue
		}
		if _, err := to.WriteAt(cached, offset); err != nil {
			return err
		}
		written += n
	}
	if written > 0 {
		k.log.Info("bcache: source lacked what the cache had", "name", s.Name, "source", s.Source, "bytes", written)
	}
	return to.Sync()
}

// hasWriteCache says whether a block device may lose what was not flushed. Yes, when the kernel does not say.
func hasWriteCache(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return true
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, file := range []string{"queue/write_cache", "../queue/write_cache"} { // the second of a partition
		if text, err := os.ReadFile(dir + file); err == nil {
			return strings.TrimSpace(string(text)) != "write through"
		}
	}
	return true
}
