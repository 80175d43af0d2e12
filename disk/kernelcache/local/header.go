// Package local is what a local volume begins with while a kernel's cache has it: a header of ours, by which a cache is known
// again after a reboot, and without which nothing is written to a volume that is not empty.
package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/internal/dm"
)

const (
	headerSize = 4 << 10
	// Space is what the header takes at the beginning of the volume, in bytes; the driver divides up the rest.
	Space = 1 << 20
	magic = "HAYLOFT kernel cache 1\n"
)

// Header is the header. Sizes in bytes.
type Header struct {
	Driver   string     `json:"driver"`
	Instance string     `json:"instance"`
	Name     string     `json:"name"`
	Mode     cache.Mode `json:"mode"`
	Source   int64      `json:"source"`             // size of the source
	Metadata int64      `json:"metadata,omitempty"` // first piece behind the header
	Data     int64      `json:"data,omitempty"`     // the piece behind that
	Block    int64      `json:"block,omitempty"`    // unit of the cache
	Set      string     `json:"set,omitempty"`      // identity of the cache, when the driver gives it one
	Clean    bool       `json:"clean,omitempty"`    // it is being taken away, and the source has everything
}

// ErrBlank is what Read says of a volume that begins with nothing but zeros.
var ErrBlank = errors.New("blank")

// Read reads the header of a volume: ErrBlank, or fault.Busy when it begins with something else.
func Read(path string) (Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	p := make([]byte, headerSize)
	if _, err := io.ReadFull(f, p); err != nil {
		return Header{}, fmt.Errorf("%s: %w", path, err)
	}
	text := bytes.TrimRight(p, "\x00")
	if len(text) == 0 {
		return Header{}, ErrBlank
	}
	var h Header
	text, ours := bytes.CutPrefix(text, []byte(magic))
	if !ours || json.Unmarshal(text, &h) != nil {
		return Header{}, fault.Errorf(fault.Busy, "%s holds something that is not a cache of ours", path)
	}
	return h, nil
}

// Find reads the header of the volume of a cache; ErrBlank when there is none, fault.Busy when it is another's.
func Find(driver, instance string, s kernelcache.Spec) (Header, error) {
	h, err := Read(s.Local)
	if err != nil {
		return h, err
	}
	size, err := Size(s.Local)
	if err != nil {
		return h, err
	}
	switch {
	case h.Driver != driver || h.Instance != instance || h.Name != s.Name:
		return h, fault.Errorf(fault.Busy, "%s is the %s cache of %s of %s", s.Local, h.Driver, h.Name, h.Instance)
	case h.Block <= 0 || h.Metadata < 0 || h.Data < 0 || h.Source <= 0 || Space+h.Metadata+h.Data > size:
		return h, fault.Errorf(fault.Corrupt, "header of %s", s.Local)
	}
	return h, nil
}

// Fits says whether a cache may be put together again for a Spec: fault.Busy when not.
func (h Header) Fits(s kernelcache.Spec) error {
	source, err := Size(s.Source)
	switch {
	case err != nil:
		return err
	case h.Source != source:
		return fault.Errorf(fault.Busy, "%s is the cache of a source of %d bytes, and %s has %d", s.Local, h.Source, s.Source, source)
	case h.Mode == s.Mode, h.Clean:
		return nil
	case h.Mode == cache.Back: // which the other mode would leave where it is
		return fault.Errorf(fault.Busy, "%s was a cache in mode %s, and may have bytes that the source has not: attach it as that, flush and detach it first", s.Local, h.Mode)
	}
	return nil
}

// MayBeDirty says of a cache that the kernel has not got whether the source may lack something that the volume has.
func MayBeDirty(driver, instance string, s kernelcache.Spec) (bool, error) {
	h, err := Find(driver, instance, s)
	if errors.Is(err, ErrBlank) || errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && h.Continues(), err
}

// Continues says whether what is on the volume counts when the kernel is given it again. In other modes than BACK the source
// has everything, and may have changed while the kernel had not got the cache.
func (h Header) Continues() bool { return h.Mode == cache.Back && !h.Clean }

// Write makes the header durable.
func Write(path string, h Header) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(magic)+len(text) > headerSize {
		return fault.Errorf(fault.Invalid, "name %q is too long", h.Name)
	}
	p := make([]byte, headerSize)
	copy(p[copy(p, magic):], text)
	return WriteAt(path, 0, p)
}

// Wipe has a volume be nobody's: zeros where the header and the beginning of its pieces were. Nothing is touched when it
// has no header.
func Wipe(driver, instance string, s kernelcache.Spec) error {
	h, err := Find(driver, instance, s)
	if errors.Is(err, ErrBlank) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.Blank(s.Local); err != nil {
		return err
	}
	return WriteAt(s.Local, 0, make([]byte, headerSize))
}

// Blank writes zeros over the beginning of the two pieces, where what the kernel looks for is.
func (h Header) Blank(path string) error {
	const beginning = 64 << 10
	err := WriteAt(path, Space, make([]byte, min(beginning, h.Metadata)))
	if err != nil {
		return err
	}
	return WriteAt(path, Space+h.Metadata, make([]byte, min(beginning, h.Data)))
}

// WriteAt writes to a device, durably.
func WriteAt(path string, offset int64, p []byte) error {
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

// Sync has a device and the storage behind it make durable what they got.
func Sync(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Size of a block device, in bytes; fault.Invalid when it is something else.
func Size(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Mode()&os.ModeDevice == 0 || fi.Mode()&os.ModeCharDevice != 0 {
		return 0, fault.Errorf(fault.Invalid, "%s is not a block device", path)
	}
	size, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_END)
	return size, err
}

// CheckSpec refuses what no driver can do, and the modes that this one has not, by name.
func CheckSpec(s kernelcache.Spec, modes []cache.Mode) error {
	switch {
	case !GoodName(s.Name):
		return fault.Errorf(fault.Invalid, "name %q", s.Name)
	case s.Source == "" || s.Local == "":
		return fault.Errorf(fault.Invalid, "wants a source and a local volume")
	case !slices.Contains(modes, s.Mode):
		return fault.Errorf(fault.Unsupported, "CACHE_MODE %s: there are %v", s.Mode, modes)
	}
	return nil
}

// GoodName says whether a name may be part of those of devices.
func GoodName(name string) bool {
	if name == "" || len(name) > 60 {
		return false
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// MetadataOf is the first piece of a volume with this header.
func (h Header) MetadataOf(path string) dm.Linear {
	return dm.Linear{Device: path, From: Space / dm.SectorSize, Sectors: h.Metadata / dm.SectorSize}
}

// DataOf is the piece behind that.
func (h Header) DataOf(path string) dm.Linear {
	return dm.Linear{Device: path, From: (Space + h.Metadata) / dm.SectorSize, Sectors: h.Data / dm.SectorSize}
}

// TooSmall is fault.OutOfSpace for a volume that has fewer bytes behind the header than a cache wants.
func TooSmall(least int64) error {
	return fault.Errorf(fault.OutOfSpace, "too small for a cache: at least %d are wanted", Space+least)
}

// RoundUp gives the next multiple of unit.
func RoundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
