package nbd

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	piece = 128 << 10 // the most that is read at once by a request that is not a hit
	// maxUnfragmented is the longest read with NBD_CMD_FLAG_DF; the protocol wants at least 64 KiB.
	maxUnfragmented = piece
	headroom        = 32 // before the payload, for the head of its reply

	budgetBytes    = 8 << 20
	budgetRequests = 512
	perConnection  = 128 // slow requests
)

// Budget bounds what all exports of a process use for requests that are not hits: beyond it, a connection reads no
// further requests until one of its own is answered. Each connection may always have one, so that none starves
// others.
type Budget struct {
	mu       sync.Mutex
	freed    sync.Cond
	bytes    int // left; negative when connections had their one
	requests int
	free     [len(classes)][]*job // with their buffers
	writes   []*longWrite
	seats    atomic.Int32 // see socket.receive
}

// classes are the sizes of buffers; the last holds whatever a request, or a piece of one, needs.
var classes = [...]int{4 << 10, 64 << 10, receiveBuffer}

// keep is how many jobs of each class wait for the next request: 4 MiB of buffers.
var keep = [...]int{128, 16, 16}

// NewBudget is a budget for one process: 8 MiB of buffers and 512 requests.
func NewBudget() *Budget { return newBudget(budgetBytes, budgetRequests) }

func newBudget(bytes, requests int) *Budget {
	b := &Budget{bytes: bytes, requests: requests}
	b.freed.L = &b.mu
	b.seats.Store(int32(max(1, runtime.GOMAXPROCS(0)-1)))
	return b
}

// job is a request, or a piece of one, that is not a hit.
type job struct {
	request
	c     *connection
	room  []byte // headroom, then the buffer
	class int    // of the buffer, -1 for none
	write *longWrite
	at    int64 // of the piece of a long write
	n     int   // bytes of it
}

// payload is the first n bytes of the buffer.
func (j *job) payload(n int) []byte { return j.room[headroom : headroom+n] }

func (b *Budget) longWrite() *longWrite {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := len(b.writes) - 1
	if last < 0 {
		return &longWrite{}
	}
	w := b.writes[last]
	b.writes = b.writes[:last]
	return w
}

func (b *Budget) putLongWrite(w *longWrite) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.err = nil; len(b.writes) < budgetRequests {
		b.writes = append(b.writes, w)
	}
}

// share is one connection's part of a budget.
type share struct {
	budget *Budget
	jobs   int // guarded by budget.mu
}

// take gives a job with a buffer of n bytes, at most receiveBuffer. When that is beyond the budget it waits, or with wait
// false gives nil.
func (s *share) take(n int, wait bool) *job {
	b := s.budget
	class, cost := -1, 0
	if n > 0 {
		for class = 0; classes[class] < n; class++ {
		}
		cost = classes[class]
	}
	b.mu.Lock()
	for s.jobs > 0 && (b.bytes < cost || b.requests < 1 || s.jobs >= perConnection) {
		if !wait {
			b.mu.Unlock()
			return nil
		}
		b.freed.Wait()
	}
	s.jobs++
	b.bytes -= cost
	b.requests--
	var j *job
	if class >= 0 && len(b.free[class]) > 0 {
		last := len(b.free[class]) - 1
		j, b.free[class] = b.free[class][last], b.free[class][:last]
	}
	b.mu.Unlock()
	switch {
	case j != nil:
		return j
	case class < 0:
		return &job{class: class}
	}
	return &job{class: class, room: make([]byte, headroom+cost)}
}

// give is the end of a job.
func (s *share) give(j *job) {
	b := s.budget
	class := j.class
	if class >= 0 {
		*j = job{class: class, room: j.room}
	}
	b.mu.Lock()
	if class >= 0 && len(b.free[class]) < keep[class] {
		b.free[class] = append(b.free[class], j)
	}
	s.jobs--
	b.requests++
	if class >= 0 {
		b.bytes += classes[class]
	}
	b.mu.Unlock()
	b.freed.Broadcast()
}

// wait returns when no job is left.
func (s *share) wait() {
	s.budget.mu.Lock()
	for s.jobs > 0 {
		s.budget.freed.Wait()
	}
	s.budget.mu.Unlock()
}
