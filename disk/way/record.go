package way

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/localstore"
)

// kind of a machine's disk on this host.
type kind string

const (
	overlay    kind = "overlay"    // qcow2 on a base
	whole      kind = "base"       // the base itself, read-only
	persistent kind = "persistent" // the source itself, or behind a cache of the machine's own
	copied     kind = "copy"       // the whole image, raw, of its own
	volatile   kind = "volatile"   // a raw file or volume of its own
	tree       kind = "tree"       // a directory on an unpacked archive
)

// diskRecord is what is remembered of one disk.
type diskRecord struct {
	ID         int              `json:"id"`
	Kind       kind             `json:"kind"`
	Size       int64            `json:"size"` // bytes promised
	Digest     string           `json:"digest,omitempty"`
	ReadOnly   bool             `json:"read_only,omitempty"`
	Repository *disk.Repository `json:"repository,omitempty"` // of a persistent image
	Source     string           `json:"source,omitempty"`

	Mode cache.Mode `json:"mode,omitempty"` // "" in records of before there were modes, and for volatile disks
	// Cached says that a persistent image is, or may be, behind a cache with files here.
	Cached    bool  `json:"cached,omitempty"`
	CacheSize int64 `json:"cache_size,omitempty"` // bytes, 0: all
	// Volume is the name of the volume that the disk is in, "" for a file in the machine's directory; Made says that it has
	// its content.
	Volume string `json:"volume,omitempty"`
	Made   bool   `json:"made,omitempty"`
	// Kernel says that a persistent image is, or may be, cached by the kernel.
	Kernel *kernelCache `json:"kernel,omitempty"`
	// Export is what the data path was told, from before it is told until it has been taken back.
	Export *blockd.Export `json:"export,omitempty"`
}

// capacity is how much of a cached persistent image is kept here, in bytes.
func (d *diskRecord) capacity() int64 {
	if d.CacheSize > 0 && d.CacheSize < d.Size {
		return d.CacheSize
	}
	return d.Size
}

// details is what the local store keeps for us with each machine.
type details struct {
	Disks    []diskRecord `json:"disks"`
	Stashing string       `json:"stashing,omitempty"` // token of a stash that has begun
}

type record struct {
	localstore.Machine
	details
}

func (r *record) disk(id int) *diskRecord {
	for i := range r.Disks {
		if r.Disks[i].ID == id {
			return &r.Disks[i]
		}
	}
	return nil
}

// promised is what the machine's own files may grow to, in bytes.
func (r *record) promised() (bytes int64) {
	for _, d := range r.Disks {
		if d.isOwn() && d.Volume == "" || d.Kind == tree && !d.ReadOnly { // volumes are counted by who gives them out
			bytes += d.Size
		}
		if d.Kind == persistent && d.Cached {
			bytes += d.capacity()
		}
		if d.Kernel != nil && d.Kernel.Volume == "" {
			bytes += d.Kernel.Size
		}
	}
	return bytes
}

// record of a machine, nil when there is none.
func (w *Way) record(ctx context.Context, machine int) (*record, error) {
	list, err := w.store.Machines(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		if m.ID != machine {
			continue
		}
		return decodeRecord(m)
	}
	return nil, nil
}

func decodeRecord(m localstore.Machine) (*record, error) {
	r := &record{Machine: m}
	if err := json.Unmarshal(m.Details, &r.details); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "machine %d: record: %w", m.ID, err)
	}
	return r, nil
}

// recordOf is record for what needs one.
func (w *Way) recordOf(ctx context.Context, machine int) (*record, error) {
	r, err := w.record(ctx, machine)
	if err == nil && r == nil {
		err = fault.Errorf(fault.NotFound, "machine %d has no disks on this host", machine)
	}
	return r, err
}

func (w *Way) putRecord(ctx context.Context, r *record) error {
	text, err := json.Marshal(r.details)
	if err != nil {
		return err
	}
	r.Details, r.Promised = text, r.promised()
	return w.store.PutMachine(ctx, r.Machine)
}

func disksDir(dir string) string { return filepath.Join(dir, "disks") }

// diskPath is where a machine's own part of a disk is: a file, or for trees a directory.
func diskPath(dir string, id int) string {
	return filepath.Join(disksDir(dir), "disk."+strconv.Itoa(id))
}

// cacheDir is where the data path keeps the files of a persistent image's cache.
func cacheDir(dir string, id int) string { return diskPath(dir, id) + ".cache" }
