// Package fleet speaks with the agents: it enrolls hosts, holds one session with each, sends them their
// assignments, takes their reports, and opens tunnels to machines.
package fleet

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/server/inventory"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// Reports takes what hosts say. Implemented by lifecycle's Recorder.
type Reports interface {
	// Machines records reports of machines on the host; it returns when they are durable.
	Machines(ctx context.Context, host int, reports []*wire.MachineReport) error
	// Prefetches records which of the images wanted on the host are there, or cannot be.
	Prefetches(ctx context.Context, host int, reports []*wire.PrefetchReport) error
	// Host records what the host has and can do.
	Host(ctx context.Context, host int, session string, hello *wire.Hello, state *wire.HostState) error
	// Connected and Gone record that a session began and ended.
	Connected(ctx context.Context, host int, session string, hello *wire.Hello) error
	Gone(ctx context.Context, host int, session string) error
}

// Fleet serves wire.Fleet. Make it with New.
type Fleet struct {
	wire.UnimplementedFleetServer
	inv       *inventory.Inventory
	authority *pki.Authority
	cluster   string
	reports   Reports
	log       *slog.Logger
	now       func() time.Time

	receivers sync.WaitGroup

	mu       sync.Mutex
	sessions map[int]*session // by host
	tunnels  map[string]*pending
	live     map[int]Live // by vm
	fetching map[fetch]Fetched
}

// Live is what is known of a machine only from its host's last reports and is not stored.
type Live struct {
	Rate        int64   `json:"rate,omitempty"` // of that, bytes a second lately
	Step        string  `json:"step,omitempty"` // of a preparation under way
	Done        int64   `json:"done,omitempty"` // bytes
	Total       int64   `json:"total,omitempty"`
	CPUSeconds  float64 `json:"cpu_seconds,omitempty"`
	MemoryBytes int64   `json:"memory_bytes,omitempty"`
	Caches      []*wire.DiskCache
}

// fetch is a prefetch under way.
type fetch struct{ image, host int }

// Fetched is how far one is, in bytes.
type Fetched struct{ Done, Total int64 }

// New makes the service of an installation, which the cluster id names.
func New(inv *inventory.Inventory, authority *pki.Authority, cluster string, reports Reports, log *slog.Logger) *Fleet {
	return &Fleet{inv: inv, authority: authority, cluster: cluster, reports: reports, log: log, now: time.Now,
		sessions: map[int]*session{}, tunnels: map[string]*pending{}, live: map[int]Live{}, fetching: map[fetch]Fetched{}}
}

// Live returns what is known of a running preparation or machine right now.
func (f *Fleet) Live(vm int) Live {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[vm]
}

// Connected reports whether the host has a session with this server.
func (f *Fleet) Connected(host int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[host] != nil
}

// Close ends all sessions. Wait, after the gRPC server has stopped, returns when nothing of them runs.
func (f *Fleet) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sessions {
		s.cancel(fault.Errorf(fault.Unavailable, "server is stopping"))
	}
}

// Wait returns when the last session's work has ended.
func (f *Fleet) Wait() { f.receivers.Wait() }

func (f *Fleet) observe(reports []*wire.MachineReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range reports {
		vm := int(r.Vm)
		if r.Phase == wire.Phase_PHASE_GONE || r.Phase == wire.Phase_PHASE_STASHED {
			delete(f.live, vm)
			continue
		}
		l := Live{CPUSeconds: r.CpuSeconds, MemoryBytes: r.MemoryBytes, Caches: r.Caches}
		if r.Phase == wire.Phase_PHASE_PREPARING || r.Phase == wire.Phase_PHASE_STASHING || len(r.ProgressStep) > 0 {
			l.Step, l.Done, l.Total, l.Rate = r.ProgressStep, r.ProgressDone, r.ProgressTotal, r.ProgressRate
		}
		f.live[vm] = l
	}
}

// Fetched returns how far the prefetch of an image to a host is, as far as this server has heard.
func (f *Fleet) Fetched(image, host int) Fetched {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetching[fetch{image, host}]
}

func (f *Fleet) observeFetches(host int, reports []*wire.PrefetchReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range reports {
		if key := (fetch{int(r.Image), host}); r.Ended {
			delete(f.fetching, key)
		} else {
			f.fetching[key] = Fetched{r.Done, r.Total}
		}
	}
}
