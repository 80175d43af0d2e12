package iscsi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

const (
	ourTag   = "hayloft.repository"
	sizeTag  = "hayloft.size="  // bytes of the object
	timeTag  = "hayloft.time="  // of the last change, Unix seconds on the server
	leaseTag = "hayloft.lease=" // of who writes it: see lease
	markTag  = "hayloft.mark="  // see mark
)

// volume is one of ours.
type volume struct {
	lvm.Volume
	size     int64
	modified time.Time
	mark     mark
	lease    lease
}

// use says what a mark is about.
type use string

const (
	free      use = "free"
	owned     use = "owned"
	undrained use = "undrained"
	deleting  use = "deleting"
	replaced  use = "replaced" // a snapshot, by a volume of its own: see Flatten
)

// mark says who has an object. It is one tag, so that it changes as a whole.
type mark struct {
	use        use
	generation uint64 // the last
	owner      repository.Owner
}

func (m mark) tag() string {
	return fmt.Sprintf("%s%d.%s.%d.%s", markTag, m.generation, m.use, m.owner.Machine, encode(m.owner.Host))
}

func (m mark) taken() bool { return m.use == owned || m.use == undrained }

func (m mark) public() repository.Mark {
	return repository.Mark{Owner: m.owner, Generation: m.generation, Undrained: m.use == undrained}
}

func parseMark(text string) (mark, error) {
	bad := fault.Errorf(fault.Corrupt, "tag %s%s is not of Hayloft's making", markTag, text)
	parts := strings.SplitN(text, ".", 4)
	if len(parts) != 4 {
		return mark{}, bad
	}
	generation, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return mark{}, bad
	}
	machine, err := strconv.Atoi(parts[2])
	if err != nil {
		return mark{}, bad
	}
	host, ok := decode(parts[3])
	m := mark{use: use(parts[1]), generation: generation, owner: repository.Owner{Host: host, Machine: machine}}
	if !ok || !slices.Contains([]use{free, owned, undrained, deleting, replaced}, m.use) || m.tag() != markTag+text {
		return mark{}, bad
	}
	return m, nil
}

// lease is how long an unfinished volume is its writer's.
type lease struct {
	begun int64  // Unix seconds on the server
	nonce string // of the writer
}

func (l lease) tag() string { return fmt.Sprintf("%s%d.%s", leaseTag, l.begun, l.nonce) }

func parseLease(text string) (lease, error) {
	begun, nonce, ok := strings.Cut(text, ".")
	n, err := strconv.ParseInt(begun, 10, 64)
	l := lease{n, nonce}
	if !ok || err != nil || l.tag() != leaseTag+text {
		return lease{}, fault.Errorf(fault.Corrupt, "tag %s%s is not of Hayloft's making", leaseTag, text)
	}
	return l, nil
}

func ours(v lvm.Volume) bool { return slices.Contains(v.Tags, ourTag) }

// read takes the tags of a volume that is ours apart.
func read(v lvm.Volume) (volume, error) {
	o := volume{Volume: v, size: -1}
	for _, tag := range v.Tags {
		var err error
		if text, ok := strings.CutPrefix(tag, sizeTag); ok {
			if o.size, err = strconv.ParseInt(text, 10, 64); err != nil || o.size < 0 || o.size > v.Size {
				err = fault.Errorf(fault.Corrupt, "tag %s of a volume of %d bytes", tag, v.Size)
			}
		}
		if text, ok := strings.CutPrefix(tag, timeTag); ok && err == nil {
			var seconds int64
			if seconds, err = strconv.ParseInt(text, 10, 64); err != nil {
				err = fault.Errorf(fault.Corrupt, "tag %s", tag)
			}
			o.modified = time.Unix(seconds, 0)
		}
		if text, ok := strings.CutPrefix(tag, markTag); ok && err == nil {
			o.mark, err = parseMark(text)
		}
		if text, ok := strings.CutPrefix(tag, leaseTag); ok && err == nil {
			o.lease, err = parseLease(text)
		}
		if err != nil {
			return o, fault.Errorf(fault.Corrupt, "logical volume %s: %w", v.Name, err)
		}
	}
	isObject := strings.HasPrefix(v.Name, objectPrefix) || strings.HasPrefix(v.Name, copyPrefix) && o.mark.use != ""
	if isObject && (o.size < 0 || o.mark.use == "") {
		return o, fault.Errorf(fault.Corrupt, "logical volume %s has lost its tags, it has %q", v.Name, v.Tags)
	}
	return o, nil
}
