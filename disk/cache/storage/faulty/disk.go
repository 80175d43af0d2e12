// Package faulty is a storage that fails as machines do: it loses power and keeps any part of what was not synced,
// runs out of space, reports errors, stalls. Disk is a host's disk in memory, sparse; Source is a persistent image in a
// repository that can also be unreachable and lie. What they do is decided by a seed, so that a test can be repeated.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hayloft/disk/cache/storage"
)

// ErrPowerLost is what everything fails with from a crash on, until the machine runs again with new handles.
var ErrPowerLost = errors.New("the machine is off")

// Op is a kind of operation.
type Op int

// The operations. Those from Create on change something and are counted as crash points.
const (
	Any Op = iota // in a Fault, Stall or Slow: each of them
	Open
	Read
	Create
	Rename
	Remove
	SyncDir
	Write
	Truncate
	Punch
	Sync
)

var opNames = [...]string{"any", "open", "read", "create", "rename", "remove", "syncdir", "write", "truncate", "punch", "sync"}

func (o Op) String() string { return opNames[o] }

func (o Op) changes() bool { return o >= Create }

// Disk is the disk of one host. It is a storage.Dir itself for tests that need no more; Dir gives handles that
// die with the run of the machine. Safe for concurrent use.
type Disk struct {
	seed uint64

	mu       sync.Mutex
	run      *run
	runs     uint64 // crashes so far: part of what outcomes are made from
	sequence uint64 // of changes
	born     map[string]uint64
	live     map[string]*inode
	durable  map[string]*inode
	pending  []nameChange
	ops      int64
	left     int64 // changes until the crash; negative: none planned
	used     int64 // bytes in live files
	capacity int64
	faults   []*Fault
	stalls   []*Stall
	slow     [len(opNames)]time.Duration
	evil     bool
	yield    int
}

// run is one run of the machine, from power on to the crash.
type run struct {
	ctx  context.Context // ends with it
	end  context.CancelFunc
	dead bool
}

func newRun() *run {
	ctx, cancel := context.WithCancel(context.Background())
	return &run{ctx: ctx, end: cancel}
}

// New makes an empty disk on which everything that is left to chance follows from seed.
func New(seed uint64) *Disk {
	return &Disk{seed: mix(seed), run: newRun(), left: -1, live: map[string]*inode{}, durable: map[string]*inode{}, born: map[string]uint64{}}
}

// Dir is the directory as the present run of the machine sees it: dead after the next crash.
func (d *Disk) Dir() storage.Dir {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &dir{disk: d, run: d.run}
}

// SetCapacity bounds the bytes in files, counted in sectors; 0: no bound. Beyond it writes give unix.ENOSPC.
func (d *Disk) SetCapacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
}

// Used is the bytes of sectors in files that are not holes.
func (d *Disk) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// Changes is how many operations have changed something so far.
func (d *Disk) Changes() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// CrashAfter makes the n-th change from now (1: the next) the crash: it may be done, in part or not at all, and it
// and all later operations fail with ErrPowerLost until Cut or Kill. 0 takes the plan back.
func (d *Disk) CrashAfter(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
	if n <= 0 {
		d.left = -1
	}
}

// Crash stops the machine now.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crash()
}

func (d *Disk) crash() {
	d.run.dead = true
	d.run.end()
}

// Crashed ends when the machine has.
func (d *Disk) Crashed() context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.run.ctx
}

// Kill is the end of the process: everything that was done stays, handles are dead, and the next run begins.
func (d *Disk) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restart()
}

// restart begins the next run of the machine without faults.
func (d *Disk) restart() {
	d.crash()
	d.runs++
	d.run, d.left, d.faults, d.stalls = newRun(), -1, nil, nil
}

// Torn reports whether a crash since it was last asked may have left a sector of a file half written: a write is not
// kept to whole sectors, as a disk does, when the machine stops in the middle of it.
func (d *Disk) Torn(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.live[name]
	if n == nil {
		return false
	}
	torn := n.torn
	n.torn = false
	return torn
}

// verdict is what becomes of an operation.
type verdict struct {
	err error
	// part of the operation that is done nevertheless, 0 to 1; 1 when err is nil.
	part float64
}

// begin waits and decides what becomes of an operation. It returns with the lock held.
func (d *Disk) begin(r *run, op Op, name string, at int64) verdict {
	d.mu.Lock()
	d.hold(r.ctx, op, name)
	if r != d.run || r.dead {
		return verdict{err: ErrPowerLost}
	}
	if op.changes() {
		d.ops++
		d.sequence++
		if d.left > 0 {
			if d.left--; d.left == 0 {
				d.left = -1
				d.crash()
				return verdict{ErrPowerLost, d.part(op, name, at)}
			}
		}
	}
	if len(d.faults) > 0 {
		if err := d.fault(op, name); err != nil {
			return verdict{fmt.Errorf("%s %s: %w", op, name, err), d.part(op, name, at)}
		}
	}
	return verdict{part: 1}
}

// part of a failed operation that is done: often nothing or all.
func (d *Disk) part(op Op, name string, at int64) float64 {
	switch h := d.chance(uint64(op), text(name), uint64(at), uint64(d.ops)); h % 3 {
	case 0:
		return 0
	case 1:
		return 1
	default:
		return unit(h)
	}
}

// chance is a number that only the seed, the number of crashes and the arguments decide.
func (d *Disk) chance(parts ...uint64) uint64 {
	h := mix(d.seed + d.runs)
	for _, p := range parts {
		h = mix(h ^ p)
	}
	return h
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func text(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// unit is in [0, 1).
func unit(h uint64) float64 { return float64(mix(h)>>11) / (1 << 53) }
