package lvm

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/lvm"
)

const (
	markTag     = "hayloft"
	instanceTag = "hayloft.instance="
	nameTag     = "hayloft.name="
	sizeTag     = "hayloft.size="
	ownerTag    = "hayloft.owner="
	ofTag       = "hayloft.of="
	makingTag   = "hayloft.state=making"
	rawTag      = "hayloft.state=raw"
	poolTag     = "hayloft.state=pool"
)

// entry is one logical volume of ours.
type entry struct {
	lvm.Volume
	name        string // of the volume
	making, raw bool
	wiped       int64 // up to where it was wiped
	uid, gid    int
	of          string
}

// book is what is in the group.
type book struct {
	all  map[string]lvm.Volume // by logical volume's name
	ours map[string]entry      // by volume's name
}

// look gives what is in the group after the call, read once for several who ask at the same time.
func (s *Store) look(ctx context.Context) (book, error) { return s.looks.do(ctx, "") }

// read reads the group, and wakes what LVM left suspended when it was killed: it is not at work while it lets us read.
func (s *Store) read(ctx context.Context) (book, error) {
	all, err := s.Tools.Volumes(ctx, s.group)
	if err != nil {
		return book{}, s.unread(err)
	}
	b := book{all: map[string]lvm.Volume{}, ours: map[string]entry{}}
	for _, v := range all {
		b.all[v.Name] = v
		e, ours := s.entry(v)
		if ours {
			b.ours[e.name] = e
		}
		if v.Suspended && (ours || s.isOurPool(v)) {
			s.Log.Warn("resume a logical volume that was left suspended", "logical", v.Name, "store", s.Path)
			if err := s.Tools.Resume(ctx, s.group, v.Name); err != nil {
				return book{}, s.errorf(err)
			}
		}
	}
	return b, nil
}

func (s *Store) isOurPool(v lvm.Volume) bool {
	return s.ownPool && v.Name == s.pool && v.Has(poolTag) && v.Has(instanceTag+s.Instance)
}

// entry reads tags; false for what is not ours.
func (s *Store) entry(v lvm.Volume) (entry, bool) {
	e := entry{Volume: v, wiped: -1}
	if !v.Has(markTag) || !v.Has(instanceTag+s.Instance) {
		return e, false
	}
	for _, tag := range v.Tags {
		if name, ok := strings.CutPrefix(tag, nameTag); ok && s.logical(name) == v.Name {
			e.name = name
		}
		if text, ok := strings.CutPrefix(tag, sizeTag); ok {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil {
				e.wiped = max(e.wiped, n)
			}
		}
		if text, ok := strings.CutPrefix(tag, ownerTag); ok {
			uid, gid, _ := strings.Cut(text, ":")
			e.uid, _ = strconv.Atoi(uid)
			e.gid, _ = strconv.Atoi(gid)
		}
		if text, ok := strings.CutPrefix(tag, ofTag); ok {
			e.of = text
		}
	}
	if e.making = v.Has(makingTag) || e.wiped < 0; e.making {
		e.wiped = -1
	}
	e.raw = v.Has(rawTag)
	return e, e.name != ""
}

// digestBytes of a long name stand for the rest of it.
const digestBytes = 16

// logical is the name of a volume's logical volume.
func (s *Store) logical(name string) string {
	prefix := "hayloft-" + s.instance() + "-"
	full := prefix + name
	if lvm.CheckVolume(s.group, full) == nil {
		return full
	}
	sum := blake3.Sum256([]byte(name))
	return prefix + "_" + hex.EncodeToString(sum[:digestBytes])
}

// round up to what a volume can have.
func (s *Store) round(size int64) int64 { return (size + s.extent - 1) / s.extent * s.extent }

// find gives the entry of a volume, nil when there is none; fault.Busy when somebody else's has its name.
func (s *Store) find(b book, name string) (*entry, error) {
	if e, ok := b.ours[name]; ok {
		return &e, nil
	}
	if _, taken := b.all[s.logical(name)]; taken {
		return nil, fault.Errorf(fault.Busy, "volume %s: the logical volume %s/%s is not ours: it has not our tags", name, s.group, s.logical(name))
	}
	return nil, nil
}

// counted is what LS_MAX is held against: all of ours, whole, thick and thin.
func (b book) counted() int64 {
	var n int64
	for _, e := range b.ours {
		n += e.Size
	}
	return n
}

// put enters what has just been made.
func (b book) put(e entry) {
	b.all[e.Name], b.ours[e.name] = e.Volume, e
}

// promised is what the volumes of a pool may grow to, ours or not.
func (b book) promised(pool string) int64 {
	var n int64
	for _, v := range b.all {
		if v.Thin && v.Pool == pool {
			n += v.Size
		}
	}
	return n
}

// room says whether more bytes for a volume may be taken. The group is locked.
func (s *Store) room(b book, name string, more int64) error {
	if used := b.counted(); s.Max > 0 && more > s.Max-used {
		return fault.Errorf(fault.OutOfSpace, "volume %s: needs %d bytes on the local store %s, %d are free of LS_MAX %d", name, more, s.Path, max(0, s.Max-used), s.Max)
	}
	if !s.thin() {
		return nil // lvcreate knows
	}
	size := b.all[s.pool].Size
	if free := size - b.promised(s.pool); more > free {
		return fault.Errorf(fault.OutOfSpace, "volume %s: needs %d bytes on the local store %s, %d are free in the pool %s of %d, where volumes are counted whole",
			name, more, s.Path, max(0, free), s.pool, size)
	}
	return nil
}

// tags of a new volume.
func (s *Store) tags(v localstore.VolumeSpec, more ...string) []string {
	return append([]string{markTag, instanceTag + s.Instance, nameTag + v.Name, fmt.Sprintf("%s%d:%d", ownerTag, v.UID, v.GID)}, more...)
}

func sizeTagOf(size int64) string { return sizeTag + strconv.FormatInt(size, 10) }

// sizeTags are those that a volume has, to be replaced.
func (e entry) sizeTags() []string {
	var tags []string
	for _, tag := range e.Tags {
		if strings.HasPrefix(tag, sizeTag) {
			tags = append(tags, tag)
		}
	}
	return tags
}
