package dummy

import (
	"container/heap"
	"time"

	"hayloft/hypervisor"
)

// planned is one end in the future. A machine may have several in the heap; those that no longer hold
// are harmless, since the record decides.
type planned struct {
	when time.Time
	id   int
}

type endHeap []planned

func (h endHeap) Len() int           { return len(h) }
func (h endHeap) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h endHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *endHeap) Push(x any) { *h = append(*h, x.(planned)) }

// Pop implements heap.Interface.
func (h *endHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (h *endHeap) plan(when time.Time, id int) { heap.Push(h, planned{when, id}) }

// announceEnds is the driver's one goroutine: it sleeps until the next planned end.
func (d *Driver) announceEnds() {
	defer close(d.finished)
	for {
		var timer *time.Timer
		var due <-chan time.Time
		if when, ok := d.announceDue(); ok {
			timer = time.NewTimer(time.Until(when))
			due = timer.C
		}
		select {
		case <-due:
		case <-d.alarm:
		case <-d.closing:
		}
		if timer != nil {
			timer.Stop()
		}
		select {
		case <-d.closing:
			return
		default:
		}
	}
}

// announceDue announces all ends that have passed and says when the next one is.
func (d *Driver) announceDue() (time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for len(d.ends) > 0 && !now.Before(d.ends[0].when) {
		id := heap.Pop(&d.ends).(planned).id
		r, ok := d.machines[id]
		if ended := r.at(now, d.hostBoot); ok && ended.Status != hypervisor.Running {
			d.machines[id] = ended
			d.hangUp(id)
			d.feed.Add(id)
		}
	}
	if len(d.ends) == 0 {
		return time.Time{}, false
	}
	return d.ends[0].when, true
}
