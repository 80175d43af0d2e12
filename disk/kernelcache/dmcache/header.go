package dmcache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
)

const (
	headerSize  = 4 << 10
	headerSpace = 1 << 20 // before the metadata
	blockSize   = 64 << 10
	magic       = "HAYLOFT dm-cache 1\n"
	// maxBlocks bounds the metadata: larger volumes have larger blocks.
	maxBlocks = 1 << 20
)

// header is what the local volume begins with, so that it is known again after a reboot. Sizes in bytes.
type header struct {
	Name     string `json:"name"`
	Instance string `json:"instance"`
	Mode     string `json:"mode"`
	Source   int64  `json:"source"` // size of the source
	Metadata int64  `json:"metadata"`
	Data     int64  `json:"data"`
	Block    int64  `json:"block"`
}

var errBlank = errors.New("blank")

// readHeader reads the header of a volume; errBlank when its beginning is nothing but zeros, fault.Busy when it is something else.
func readHeader(path string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	p := make([]byte, headerSize)
	if _, err := io.ReadFull(f, p); err != nil {
		return header{}, fmt.Errorf("%s: %w", path, err)
	}
	text := bytes.TrimRight(p, "\x00")
	if len(text) == 0 {
		return header{}, errBlank
	}
	var h header
	text, ours := bytes.CutPrefix(text, []byte(magic))
	if !ours || json.Unmarshal(text, &h) != nil {
		return header{}, fault.Errorf(fault.Busy, "%s holds something that is not a cache of ours", path)
	}
	return h, nil
}

// fits says whether a header is of the same cache: fault.Busy when not.
func (h header) fits(s kernelcache.Spec) error {
	source, err := deviceSize(s.Source)
	if err != nil {
		return err
	}
	local, err := deviceSize(s.Local)
	if err != nil {
		return err
	}
	switch {
	case h.Name != s.Name:
		return fault.Errorf(fault.Busy, "%s is the cache of %s", s.Local, h.Name)
	case h.Source != source:
		return fault.Errorf(fault.Busy, "%s is the cache of a source of %d bytes, and %s has %d", s.Local, h.Source, s.Source, source)
	case h.Block < blockSize || headerSpace+h.Metadata+h.Data > local:
		return fault.Errorf(fault.Corrupt, "header of %s", s.Local)
	}
	return nil
}

// layout divides a volume up.
func layout(name, instance string, mode cache.Mode, source, local int64) (header, error) {
	h := header{Name: name, Instance: instance, Mode: string(mode), Source: source, Block: blockSize}
	for local/h.Block > maxBlocks {
		h.Block *= 2
	}
	// "4MB + (16 * nr_blocks)" is the kernel's own advice; metadata2's bitset of dirty blocks is in it.
	h.Metadata = roundUp(4<<20+16*(local/h.Block), 1<<20)
	h.Data = (local - headerSpace - h.Metadata) / h.Block * h.Block
	if h.Data < 16*h.Block {
		return h, fault.Errorf(fault.OutOfSpace, "a local volume of %d bytes is too small for a cache: at least %d are wanted", local, headerSpace+h.Metadata+16*h.Block)
	}
	return h, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// prepare makes the local volume ready, or finds that it was before.
func (d *Driver) prepare(s kernelcache.Spec) (header, error) {
	h, err := readHeader(s.Local)
	if err == nil {
		if err := h.fits(s); err != nil {
			return h, err
		}
		if h.Mode == string(s.Mode) {
			return h, nil
		}
		if h.Mode == string(cache.Back) { // dirty blocks may be there, and THRU would not write them
			return h, fault.Errorf(fault.Busy, "%s was a cache in mode %s, and may have bytes that the source has not: attach and flush it as that first", s.Local, h.Mode)
		}
		h.Mode = string(s.Mode)
		return h, writeHeader(s.Local, h)
	}
	if !errors.Is(err, errBlank) {
		return h, err
	}
	source, err := deviceSize(s.Source)
	if err != nil {
		return h, err
	}
	local, err := deviceSize(s.Local)
	if err != nil {
		return h, err
	}
	if h, err = layout(s.Name, d.instance, s.Mode, source, local); err != nil {
		return h, err
	}
	// A superblock of zeros has the kernel make new metadata.
	if err := zero(s.Local, headerSpace, headerSize); err != nil {
		return h, err
	}
	return h, writeHeader(s.Local, h)
}

// mayBeDirty says of a volume that is not attached whether the source may lack something of it.
func mayBeDirty(s kernelcache.Spec) (bool, error) {
	h, err := readHeader(s.Local)
	if errors.Is(err, errBlank) || errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && h.Mode == string(cache.Back), err
}

func writeHeader(path string, h header) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	p := make([]byte, headerSize)
	copy(p[copy(p, magic):], text)
	return writeDurable(path, 0, p)
}

// wipe has a volume be nobody's.
func wipe(s kernelcache.Spec) error {
	_, err := readHeader(s.Local)
	if errors.Is(err, errBlank) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := zero(s.Local, headerSpace, headerSize); err != nil {
		return err
	}
	return zero(s.Local, 0, headerSize)
}

func zero(path string, offset int64, length int) error {
	return writeDurable(path, offset, make([]byte, length))
}

func writeDurable(path string, offset int64, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, offset)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
