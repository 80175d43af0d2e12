package faulty

import (
	"context"
	"runtime"
	"time"
)

// Fault makes operations fail. A failed write may be done in part, a failed sync leaves what it was to sync in
// doubt: a later sync does not make it durable, a cut may still keep it, as with Linux's page cache.
type Fault struct {
	Op    Op
	Name  string // of the file; "": each
	Err   error  // unix.EIO, unix.ENOSPC
	Skip  int    // so many pass first
	Times int    // so many fail; 0: all
	OneIn int    // only one in so many, at random; 0: each
	met   uint64
}

// Inject adds a fault, until it is used up, Heal, or the next run of the machine.
func (d *Disk) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.Times == 0 {
		f.Times = -1
	}
	d.faults = append(d.faults, &f)
}

// Heal takes all faults back.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = nil
}

// ForgetDoubtful makes a failed sync also change what reads give, for some sectors, to what was there before: as
// when the kernel drops the page that it could not write.
func (d *Disk) ForgetDoubtful() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.evil = true
}

func (d *Disk) fault(op Op, name string) error {
	for _, f := range d.faults {
		if f.Times == 0 || f.Op != Any && f.Op != op || f.Name != "" && f.Name != name {
			continue
		}
		f.met++
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.OneIn > 1 && d.chance(text(name), uint64(op), f.met)%uint64(f.OneIn) != 0 {
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		return f.Err
	}
	return nil
}

// Stall holds operations up.
type Stall struct {
	op       Op
	name     string
	reached  chan struct{}
	met      bool
	released chan struct{}
	disk     *Disk
}

// Stall makes each operation of a kind on a file ("": each) wait until Release or the crash.
func (d *Disk) Stall(op Op, name string) *Stall {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &Stall{op: op, name: name, reached: make(chan struct{}), released: make(chan struct{}), disk: d}
	d.stalls = append(d.stalls, s)
	return s
}

// Reached is closed when the first operation waits.
func (s *Stall) Reached() <-chan struct{} { return s.reached }

// Release lets all go on. Only the first call does something.
func (s *Stall) Release() {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	select {
	case <-s.released:
	default:
		close(s.released)
	}
}

// Slow makes each operation of a kind take so long.
func (d *Disk) Slow(op Op, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow[op] = wait
}

// Yield makes each operation give way to other goroutines up to so many times, by chance: what goes on at the same time
// is mixed, and no clock is needed.
func (d *Disk) Yield(times int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.yield = times
}

// hold waits for stalls and latency, without the lock meanwhile.
func (d *Disk) hold(ctx context.Context, op Op, name string) {
	if d.yield > 0 {
		times := d.chance(uint64(op), text(name), d.sequence) % uint64(d.yield+1)
		d.mu.Unlock()
		for range times {
			runtime.Gosched()
		}
		d.mu.Lock()
	}
	wait := max(d.slow[Any], d.slow[op])
	if len(d.stalls) == 0 && wait == 0 {
		return
	}
	if wait > 0 {
		d.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		d.mu.Lock()
	}
	for i := 0; i < len(d.stalls); i++ {
		s := d.stalls[i]
		if s.op != Any && s.op != op || s.name != "" && s.name != name {
			continue
		}
		if !s.met {
			s.met = true
			close(s.reached)
		}
		d.mu.Unlock()
		select {
		case <-s.released:
		case <-ctx.Done():
		}
		d.mu.Lock()
	}
}
