package lifecycle

import (
	"slices"
	"sync"
	"time"

	"hayloft/cloud"
)

// absences times how long hosts have been without a session.
type absences struct {
	grace time.Duration
	away  map[int]*absence // by host
	wake  chan struct{}    // signalled when take has something to give

	mu sync.Mutex // of what is over
}

type absence struct {
	timer *time.Timer
	over  bool // the host's time is up
}

func newAbsences(grace time.Duration) *absences {
	return &absences{grace: grace, away: map[int]*absence{}, wake: make(chan struct{}, 1)}
}

// watch starts a timer for each host that went away and stops those of hosts that are back. Away are monitored hosts
// without a session, and those given up of which unfinished says that not all of it was done.
func (a *absences) watch(hosts []cloud.Host, unfinished func(host int) bool) {
	for _, h := range hosts {
		away := h.Session == "" && (h.State == cloud.HostStateMonitored || h.State == cloud.HostStateError && unfinished(h.ID))
		known := a.away[h.ID]
		switch {
		case away && known == nil:
			a.away[h.ID] = a.begin()
		case !away && known != nil:
			known.timer.Stop()
			delete(a.away, h.ID)
		}
	}
}

func (a *absences) begin() *absence {
	one := &absence{}
	one.timer = time.AfterFunc(a.grace, func() {
		a.mu.Lock()
		one.over = true
		a.mu.Unlock()
		select {
		case a.wake <- struct{}{}:
		default:
		}
	})
	return one
}

// take returns the hosts whose time is up. One that is still away at the next watch is timed anew.
func (a *absences) take() []int {
	a.mu.Lock()
	defer a.mu.Unlock()
	var due []int
	for id, one := range a.away {
		if one.over {
			due = append(due, id)
			delete(a.away, id)
		}
	}
	slices.Sort(due)
	return due
}

func (a *absences) stop() {
	for _, one := range a.away {
		one.timer.Stop()
	}
}
