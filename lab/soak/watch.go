package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/blockd"
	"hayloft/disk/cache"
)

// usage is what the data path's process has.
type usage struct {
	pid, descriptors, threads int
	rss                       int64 // bytes
}

// atRest is a process that exports nothing.
type atRest struct {
	usage
	goroutines int
}

// watch is what was seen of the data path's processes.
type watch struct {
	atRest atRest

	mu        sync.Mutex
	now, most usage
	exports   int
	undrained int64
	evicted   int64
	last      map[string]cache.BaseStatus
	complete  int // bases, now
}

const sampleEvery = 250 * time.Millisecond

// sample looks at the process again and again.
func (s *soak) sample() {
	for ; !s.ended(); s.sleep(sampleEvery) {
		var status blockd.Status
		if err := s.call("status", func(ctx context.Context) (err error) {
			status, err = s.client.Status(ctx)
			return err
		}); err != nil {
			s.fail(err)
			return
		}
		s.watch.see(status)
	}
}

func (w *watch) see(status blockd.Status) {
	u, err := usageOf(status.PID)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil { // otherwise it has just been killed
		w.now = u
		w.most.rss, w.most.descriptors, w.most.threads = max(w.most.rss, u.rss), max(w.most.descriptors, u.descriptors), max(w.most.threads, u.threads)
	}
	w.exports, w.undrained, w.complete = len(status.Exports), 0, 0
	for _, e := range status.Exports {
		if e.Volume != nil {
			w.undrained += e.Volume.Undrained
		}
	}
	last := map[string]cache.BaseStatus{}
	for _, b := range status.Bases {
		if before := w.last[b.Digest]; b.Status.Evicted >= before.Evicted {
			w.evicted += b.Status.Evicted - before.Evicted
		} else { // opened again
			w.evicted += b.Status.Evicted
		}
		last[b.Digest] = b.Status
		if b.Status.Complete {
			w.complete++
		}
	}
	w.last = last
}

func (w *watch) line() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d exports, %d bases complete, %d MB evicted, %d MB undrained; RSS %.1f MB (most %.1f), %d descriptors (most %d), %d threads (most %d)",
		w.exports, w.complete, w.evicted>>20, w.undrained>>20, float64(w.now.rss)/1e6, float64(w.most.rss)/1e6, w.now.descriptors, w.most.descriptors, w.now.threads, w.most.threads)
}

func usageOf(pid int) (usage, error) {
	u := usage{pid: pid}
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.descriptors = len(names)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			u.rss = n << 10
		case "Threads:":
			u.threads = int(n)
		}
	}
	return u, nil
}

// rest looks at a process that exports nothing, and has it say what its goroutines do, which ends it: Go's answer
// to SIGQUIT.
func (s *soak) rest() (atRest, error) {
	var a atRest
	pid, err := s.process()
	if err != nil {
		return a, err
	}
	if a.usage, err = usageOf(pid); err != nil {
		return a, err
	}
	log := s.path("state", blockd.LogFile)
	var before unix.Stat_t
	if err := unix.Stat(log, &before); err != nil {
		return a, err
	}
	if err := s.signal(pid, unix.SIGQUIT); err != nil {
		return a, err
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return a, err
	}
	a.goroutines = strings.Count("\n"+string(text[min(int64(len(text)), before.Size):]), "\ngoroutine ")
	if a.goroutines == 0 {
		return a, fmt.Errorf("process %d said nothing of its goroutines to %s", pid, log)
	}
	_, err = s.process() // the next one, which ends as it should
	return a, err
}

// What a process at rest may have more of than a fresh one: connections that our client keeps, the runtime's own.
const (
	moreDescriptors = 12
	moreGoroutines  = 24
)

// sameAtRest compares the process after all the work with a fresh one.
func (s *soak) sameAtRest() error {
	former := s.watch.atRest
	a, err := s.rest()
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("at rest: RSS %.1f MB, %d descriptors, %d threads, %d goroutines; when it was fresh %.1f MB, %d, %d, %d",
		float64(a.rss)/1e6, a.descriptors, a.threads, a.goroutines, float64(former.rss)/1e6, former.descriptors, former.threads, former.goroutines))
	if a.descriptors > former.descriptors+moreDescriptors || a.goroutines > former.goroutines+moreGoroutines {
		text, _ := os.ReadFile(s.path("state", blockd.LogFile))
		return fmt.Errorf("process %d at rest has %d descriptors and %d goroutines, a fresh one %d and %d: %s", a.pid, a.descriptors, a.goroutines,
			former.descriptors, former.goroutines, text[max(0, len(text)-20_000):])
	}
	return nil
}
