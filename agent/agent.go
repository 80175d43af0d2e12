// Package agent is the host process: it keeps a session with the server, makes this host what the server
// assigned to it, and reports what is. It is level-triggered: every machine has one assignment (what
// should be) and one record of what was reached, kept in a local database; a worker compares the two with
// what the drivers see and takes the next step, until nothing is left to do. Machines outlive the agent.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/network"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// Config is what an agent is made of. Name, StateDir, Server, Hypervisors, Network and Way are needed.
type Config struct {
	Name     string // the host's name, as in its certificate
	StateDir string // the agent's database, key and machines' directories; made 0711
	Server   string // host:port of the server
	Token    string // one-time token; needed until the host is enrolled
	Version  string // of this program, for the server's eyes

	Hypervisors map[string]hypervisor.Driver // by name
	Network     network.Driver
	Way         disk.Way
	Log         *slog.Logger // nil: no log

	// Storage is told to the server: how Way was told to keep disks and caches. Nil: in files, with the engine.
	Storage *wire.LocalStorage

	CPU     float64 // cores to report; 0: what the machine has
	Memory  int64   // bytes to report; 0: what the machine has
	UIDBase int     // machine N runs as user UIDBase+N; 0: DefaultUIDBase
	GID     int     // group of all machines; 0: DefaultGID

	Prepares int // disk preparations at a time; 0: twice the cores
	Starts   int // starts of domains at a time; 0: DefaultStarts
	Stops    int // ends of domains at a time; 0: DefaultStops
	// BootCores is how many cores machines that boot may want together before the next one waits for its
	// turn. 0: twice the cores; negative: no pacing.
	BootCores float64

	// Dial replaces the network connection to the server. Nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Defaults of Config. User and group numbers lie above what people and containers use.
const (
	DefaultUIDBase = 0x20000000
	DefaultGID     = 0x1fffffff
	DefaultStarts  = 8
	DefaultStops   = 8
)

// Agent is one host's agent. Make it with New, let it work with Run.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	pace    pace
	hook    func(vm int64, point string) // failpoints of tests; nil otherwise
	noSync  bool                         // of tests in which only the agent dies, never the host
	records *records
	listers map[string]*lister
	slots   slots
	boots   *boots

	ctx context.Context // of Run, for workers
	wg  sync.WaitGroup  // everything that Run started

	accepting sync.Mutex // one set of assignments at a time, and none while a machine is forgotten

	mu       sync.Mutex
	machines map[int64]*machine
	dirty    map[int64]bool // machines with something new to report
	synced   bool           // a full set of assignments has arrived
	stale    bool           // the server was not heard for long: nothing is started by the records alone
	bell     chan struct{}  // rung when dirty gets its first entry
	hostBell chan struct{}  // rung when the host's state may have changed

	identityMu sync.Mutex
	identity   *identity // nil until enrolled

	networks   networks
	host       hostState
	prefetches *prefetches
}

// pace holds the agent's intervals, apart so that tests can be quick.
type pace struct {
	coalesce  time.Duration // reports wait so long for company
	host      time.Duration // host state at least this often
	hostPause time.Duration // between two looks at the host
	usage     time.Duration // usage and audit of domains
	askAgain  time.Duration // between two requests to power off
	progress  time.Duration // between two reports of progress of one machine
	drain     time.Duration // how long draining may say nothing before it has failed, where nothing undrained may stay
	drainTry  time.Duration // the same where it may; and how long a repository that cannot be reached is tried
	drainWait time.Duration // between two attempts
	retryMin  time.Duration // first pause between sessions, after one attempt without
	retryMax  time.Duration
	renew     time.Duration // between looks at the certificate
	stopAtEnd time.Duration // for taking back after a failure
	wait      time.Duration // without progress, after which it is said what is waited for, and how often
	waitLog   time.Duration // after which the log says so, and again whenever that has doubled
}

var defaultPace = pace{
	coalesce: 5 * time.Millisecond, host: 10 * time.Second, hostPause: time.Second, usage: 10 * time.Second, askAgain: 5 * time.Second,
	progress: 250 * time.Millisecond, drain: 30 * time.Second, drainTry: 10 * time.Second, drainWait: 500 * time.Millisecond, retryMin: 100 * time.Millisecond, retryMax: 5 * time.Second,
	renew: time.Minute, stopAtEnd: 30 * time.Second,
	wait: 5 * time.Second, waitLog: 30 * time.Second,
}

// New checks the configuration and reads the host's identity. Errors: fault.Invalid for a wrong
// configuration, fault.WrongState when the token is of another installation than the host is enrolled in.
func New(cfg Config) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.machinesDir(), 0o711); err != nil {
		return nil, fmt.Errorf("agent %s: %w", cfg.Name, err)
	}
	if err := errors.Join(os.Chmod(cfg.StateDir, 0o711), os.Chmod(cfg.machinesDir(), 0o711)); err != nil {
		return nil, fmt.Errorf("agent %s: %w", cfg.Name, err)
	}
	id, err := loadIdentity(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if err := checkIdentity(id, cfg); err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, pace: defaultPace, identity: id,
		listers:  make(map[string]*lister),
		machines: make(map[int64]*machine),
		dirty:    make(map[int64]bool),
		bell:     make(chan struct{}, 1),
		hostBell: make(chan struct{}, 1),
		slots: slots{
			prepare: make(chan struct{}, cfg.Prepares),
			start:   make(chan struct{}, cfg.Starts),
			stop:    make(chan struct{}, cfg.Stops),
		},
	}
	a.boots = newBoots(cfg.BootCores)
	for name, driver := range cfg.Hypervisors {
		a.listers[name] = &lister{driver: driver}
	}
	a.networks.driver = cfg.Network
	a.prefetches = newPrefetches()
	return a, nil
}

func (c *Config) complete() error {
	if _, err := pki.ParseIdentity(string(pki.Host) + ":" + c.Name); err != nil {
		return err
	}
	switch {
	case c.StateDir == "" || !filepath.IsAbs(c.StateDir):
		return fault.Errorf(fault.Invalid, "agent %s: state directory %q is not an absolute path", c.Name, c.StateDir)
	case c.Network == nil || c.Way == nil || len(c.Hypervisors) == 0:
		return fault.Errorf(fault.Invalid, "agent %s: a network driver, a way of disks and a hypervisor are needed", c.Name)
	}
	if c.Token != "" {
		if _, err := pki.ParseToken(c.Token); err != nil {
			return err
		}
	}
	for value, standard := range map[*int]int{
		&c.UIDBase: DefaultUIDBase, &c.GID: DefaultGID,
		&c.Prepares: 2 * runtime.NumCPU(), &c.Starts: DefaultStarts, &c.Stops: DefaultStops,
	} {
		if *value <= 0 {
			*value = standard
		}
	}
	if c.BootCores == 0 {
		c.BootCores = bootFactor * float64(runtime.NumCPU())
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) machinesDir() string { return filepath.Join(c.StateDir, "machines") }

func (c *Config) machineDir(vm int64) string {
	return filepath.Join(c.machinesDir(), strconv.FormatInt(vm, 10))
}

// Run works until ctx ends and then leaves all machines as they are. It adopts what an earlier agent left
// and carries on with it before the server is reached. Errors: fault.Busy when another agent uses the
// state directory, fault.Permission when the server refuses to enroll the host; a server that is only
// away is waited for.
// When the server was last heard more than ten minutes ago, nothing is started before it is heard again.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := a.open(ctx); err != nil {
		return err
	}
	err := a.serve(ctx)
	cancel()
	return errors.Join(err, a.close())
}

// open reads the records, looks at the host and lets the workers begin.
func (a *Agent) open(ctx context.Context) error {
	heard, err := lastHeard(a.cfg.StateDir)
	if err != nil {
		return err
	}
	a.stale = time.Since(heard) > staleAfter
	if a.records, err = openRecords(a.cfg.StateDir, !a.noSync); err != nil {
		return err
	}
	a.ctx = ctx
	if err := a.load(); err != nil {
		return errors.Join(err, a.records.close())
	}
	for _, l := range a.listers {
		l.ctx = ctx
		events := l.driver.Events(ctx) // before anybody looks at a domain: what ends after that is told
		a.own(func() { a.watch(l, events) })
	}
	gone := a.takeGone()
	a.own(func() { a.sweep(ctx, gone) })
	a.own(func() { a.sample(ctx) })
	a.own(func() { a.boots.run(ctx) })
	a.own(func() { a.prefetch(ctx) })
	for _, vm := range slices.Sorted(maps.Keys(a.machines)) {
		a.kick(vm)
	}
	return nil
}

// close waits for everything that open started. The context of open has ended.
func (a *Agent) close() error {
	a.wg.Wait()
	return a.records.close()
}

// own runs fn in a goroutine that close waits for.
func (a *Agent) own(fn func()) {
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		fn()
	}()
}

// load brings the records into memory.
func (a *Agent) load() error {
	networks, err := a.records.networks()
	if err != nil {
		return err
	}
	a.networks.load(networks)
	return a.records.each(func(vm int64, assignment *wire.Assignment, r *reached) {
		m := &machine{vm: vm, assignment: assignment, reached: r, again: true}
		m.dropped = r.Orphan
		m.finished = r.Domain == noDomain && (r.Disks == stashed || r.Disks == disksGone)
		m.report = m.remembered()
		a.machines[vm] = m
	})
}
