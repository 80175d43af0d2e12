package faulty

import (
	"io/fs"
	"maps"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/cache/storage"
)

// nameChange is a change of the directory that is not durable yet.
type nameChange struct {
	from string // removed, "" for none
	to   string // set to what, "" for none
	what *inode
	// sequence of the change
	sequence uint64
}

func (c nameChange) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.what
	}
}

// dir is the directory in one run of the machine.
type dir struct {
	disk *Disk
	run  *run
}

var _ storage.Dir = (*Disk)(nil)

// Open is that of storage.Dir, as are the rest, in the present run of the machine.
func (d *Disk) Open(name string) (storage.File, error)   { return d.Dir().Open(name) }
func (d *Disk) Create(name string) (storage.File, error) { return d.Dir().Create(name) }
func (d *Disk) Rename(from, to string) error             { return d.Dir().Rename(from, to) }
func (d *Disk) Remove(name string) error                 { return d.Dir().Remove(name) }
func (d *Disk) Names() ([]string, error)                 { return d.Dir().Names() }
func (d *Disk) Sync() error                              { return d.Dir().Sync() }

func check(names ...string) error {
	for _, n := range names {
		if n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return fault.Errorf(fault.Invalid, "cache file %q: not a name", n)
		}
	}
	return nil
}

func absent(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

func (d *dir) Open(name string) (storage.File, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	v := d.disk.begin(d.run, Open, name, 0)
	defer d.disk.mu.Unlock()
	if v.err != nil {
		return nil, v.err
	}
	n := d.disk.live[name]
	if n == nil {
		return nil, absent("open", name)
	}
	return &file{disk: d.disk, run: d.run, name: name, inode: n}, nil
}

func (d *dir) Create(name string) (storage.File, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	k := d.disk
	v := k.begin(d.run, Create, name, 0)
	defer k.mu.Unlock()
	n := k.live[name]
	if v.err == nil || v.part > 0 {
		if n != nil {
			k.used += n.truncate(0, k.sequence) * Sector
		} else {
			k.born[name]++
			n = newInode(mix(text(name)) + k.born[name])
			k.change(nameChange{to: name, what: n})
		}
	}
	if v.err != nil {
		return nil, v.err
	}
	return &file{disk: k, run: d.run, name: name, inode: n}, nil
}

// change does a change of names. The space of what has no name any more is free.
func (d *Disk) change(c nameChange) {
	for _, gone := range []string{c.from, c.to} {
		if old := d.live[gone]; old != nil && gone != "" {
			if old.names--; old.names == 0 {
				d.used -= old.data * Sector
			}
		}
	}
	c.sequence = d.sequence
	c.apply(d.live)
	if c.what != nil {
		if c.what.names++; c.what.names == 1 {
			d.used += c.what.data * Sector
		}
	}
	d.pending = append(d.pending, c)
}

func (d *dir) Rename(from, to string) error {
	if err := check(from, to); err != nil {
		return err
	}
	k := d.disk
	v := k.begin(d.run, Rename, from, int64(text(to)))
	defer k.mu.Unlock()
	n := k.live[from]
	if n == nil && v.err == nil {
		return absent("rename", from)
	}
	if n != nil && from != to && (v.err == nil || v.part > 0.5) {
		k.change(nameChange{from: from, to: to, what: n})
	}
	return v.err
}

func (d *dir) Remove(name string) error {
	if err := check(name); err != nil {
		return err
	}
	k := d.disk
	v := k.begin(d.run, Remove, name, 0)
	defer k.mu.Unlock()
	if k.live[name] != nil && (v.err == nil || v.part > 0.5) {
		k.change(nameChange{from: name})
	}
	return v.err
}

func (d *dir) Names() ([]string, error) {
	v := d.disk.begin(d.run, Open, "", 0)
	defer d.disk.mu.Unlock()
	if v.err != nil {
		return nil, v.err
	}
	return slices.Sorted(maps.Keys(d.disk.live)), nil
}

// Sync: a failed one leaves each change as it was, to be undone by a cut or not.
func (d *dir) Sync() error {
	k := d.disk
	v := k.begin(d.run, SyncDir, "", 0)
	defer k.mu.Unlock()
	if v.err == nil || v.part == 1 {
		k.durable, k.pending = maps.Clone(k.live), nil
	}
	return v.err
}
