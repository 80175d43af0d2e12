// Package qemublock reads and writes one object of a storage system through QEMU's block drivers, which know many and
// need nothing from the kernel. Each opened object has a qemu-storage-daemon of its own, a child of this process: what
// hangs or breaks in a driver takes nothing else with it. Its node is exported by NBD on a socket in a private
// directory, and used by hayloft/disk/export/nbd.
//
// Nodes are structs of this package, handed over as JSON on a socket that only the two processes have: no value of
// theirs can become another driver, a file of this host or an argument that others see. Where this process is root, the
// child has a user id of its own that nobody else has, and no rights.
//
// The child ends with Close, with this process however that ends, and when nobody has read for a while.
package qemublock

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
)

// Options say what to open.
type Options struct {
	// Label is how errors begin: "datastore 7 (pool): object a".
	Label string
	Node  Node
	// Writable opens for reading and writing. What can only be read is opened again by itself after the child ended,
	// and sleeps while it is not used; a writable one never comes back.
	Writable bool
	// Size is the true length in bytes of an object that QEMU sees in sectors of 512, 0: as QEMU sees it.
	Size *int64
	// Connections to the child, each with 16 requests at a time; 0: 4.
	Connections int
	// Limit is how long the opening, or one request, may take before it is fault.Unavailable; 0: 30 seconds.
	Limit time.Duration
	// Idle is how long one that can only be read keeps its child without being used; 0: 2 minutes.
	Idle time.Duration
}

const (
	defaultConnections = 4
	defaultLimit       = 30 * time.Second
	defaultIdle        = 2 * time.Minute
	againAfter         = time.Second // a child that ended is not replaced more often
)

// Disk implements repository.Target and repository.Extents. Errors are classified as those of a Repository: when the
// child ended, or a request has no answer within the limit, fault.Unavailable; the buffer is no longer used then.
type Disk struct {
	options Options
	ctx     context.Context // ends with Close, and when it can only be read with the context of Open
	cancel  context.CancelFunc
	size    atomic.Int64
	used    atomic.Int64 // UnixNano of the last request
	turn    atomic.Uint32

	mu     sync.RWMutex // held for reading while requests are under way
	child  *daemon      // nil: asleep, or ended
	failed error        // why the last child ended or did not begin
	begun  time.Time    // the last one
	idle   *time.Timer
	closed bool
}

var (
	_ repository.Target  = (*Disk)(nil)
	_ repository.Extents = (*Disk)(nil)
)

// Open starts a child that opens the node. ctx bounds the opening and, unless it is writable, every request. Errors
// are those of the storage as far as QEMU tells them apart: fault.NotFound, fault.Permission, fault.Busy,
// fault.Invalid; otherwise fault.Unavailable. fault.Unsupported when QEMU or its driver is not installed.
func Open(ctx context.Context, o Options) (*Disk, error) {
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	if o.Limit == 0 {
		o.Limit = defaultLimit
	}
	if o.Idle == 0 {
		o.Idle = defaultIdle
	}
	if err := o.Node.check(); err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", o.Label, err)
	}
	d := &Disk{options: o}
	life := ctx
	if o.Writable {
		life = context.WithoutCancel(ctx)
	}
	d.ctx, d.cancel = context.WithCancel(life)
	if err := d.start(ctx); err != nil {
		d.cancel()
		return nil, err
	}
	d.size.Store(d.child.size)
	if o.Size != nil {
		if d.child.size < *o.Size {
			err := d.errorf(fault.Corrupt, "QEMU sees %d bytes of %d", d.child.size, *o.Size)
			_ = d.Close()
			return nil, err
		}
		d.size.Store(*o.Size)
	}
	d.used.Store(time.Now().UnixNano())
	if !o.Writable {
		d.mu.Lock() // sleep waits for it
		d.idle = time.AfterFunc(o.Idle, d.sleep)
		d.mu.Unlock()
	}
	return d, nil
}

func (d *Disk) errorf(class fault.Class, format string, args ...any) error {
	return fault.Errorf(class, "%s: %w", d.options.Label, fmt.Errorf(format, args...))
}

// start makes a child. The caller holds mu, or is the only one.
func (d *Disk) start(ctx context.Context) error {
	late := fmt.Errorf("%w of %v", context.DeadlineExceeded, d.options.Limit)
	ctx, cancel := context.WithTimeoutCause(ctx, d.options.Limit, late)
	defer cancel()
	d.begun = time.Now()
	child, err := startDaemon(ctx, d.options)
	if err != nil {
		d.failed = d.errorf(fault.ClassOf(err), "%w", err)
		return d.failed
	}
	d.child, d.failed = child, nil
	return nil
}

// wake makes sure that there is a child which lives; it returns with mu held for reading, unless it fails.
func (d *Disk) wake() (*daemon, error) {
	for {
		d.mu.RLock()
		// When the context has ended nothing is asked any more: the answer might be quicker than who looks at the context.
		if d.child != nil && !d.child.isDead() && d.ctx.Err() == nil {
			return d.child, nil
		}
		d.mu.RUnlock()
		if err := d.again(); err != nil {
			return nil, err
		}
	}
}

// again replaces a child that ended.
func (d *Disk) again() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed || d.ctx.Err() != nil:
		return d.errorf(fault.Unavailable, "closed: %w", context.Cause(d.ctx))
	case d.child != nil && !d.child.isDead():
		return nil
	case d.child != nil:
		d.failed = d.errorf(fault.Unavailable, "%w", d.child.why())
		d.child.end()
		d.child = nil
	}
	if d.failed != nil && (d.options.Writable || time.Since(d.begun) < againAfter) {
		return d.failed
	}
	if err := d.start(d.ctx); err != nil {
		return err
	}
	if d.child.size < d.size.Load() {
		err := d.errorf(fault.Corrupt, "has become shorter: %d bytes of %d", d.child.size, d.size.Load())
		d.child.end()
		d.child, d.failed = nil, err
		return err
	}
	d.idle.Reset(d.options.Idle)
	return nil
}

// sleep ends the child of a disk that nobody used for a while.
func (d *Disk) sleep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.child == nil {
		return
	}
	if rest := d.options.Idle - time.Since(time.Unix(0, d.used.Load())); rest > 0 {
		d.idle.Reset(rest)
		return
	}
	d.child.end()
	d.child, d.failed = nil, nil
}

// Size is the length in bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// Close ends the child, which lets go of what it holds at the storage, unless that hangs. Requests under way fail.
func (d *Disk) Close() error {
	d.cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.idle != nil {
		d.idle.Stop()
	}
	if d.child != nil {
		d.child.end()
		d.child = nil
	}
	return nil
}

// client takes connections in turn.
func (d *Disk) client(c *daemon) *nbd.Client { return c.clients[int(d.turn.Add(1))%len(c.clients)] }
