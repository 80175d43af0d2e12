package lifecycle

import (
	"time"

	"hayloft/cloud"
)

// absences times how long monitored hosts have been without a session.
type absences struct {
	grace  time.Duration
	timers map[int]*time.Timer
	due    chan int // ids of hosts whose time is up
}

func newAbsences(grace time.Duration) *absences {
	return &absences{grace: grace, timers: map[int]*time.Timer{}, due: make(chan int, 64)}
}

// watch starts a timer for each host that went away and stops those of hosts that are back.
func (a *absences) watch(hosts []cloud.Host) {
	for _, h := range hosts {
		away := h.State == cloud.HostStateMonitored && h.Session == ""
		timer := a.timers[h.ID]
		switch {
		case away && timer == nil:
			id := h.ID
			a.timers[id] = time.AfterFunc(a.grace, func() {
				select {
				case a.due <- id:
				default: // the next pass over the hosts starts the timer again
				}
			})
		case !away && timer != nil:
			timer.Stop()
			delete(a.timers, h.ID)
		}
	}
}

func (a *absences) stop() {
	for _, timer := range a.timers {
		timer.Stop()
	}
}
