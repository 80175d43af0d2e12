package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/internal/command"
	"hayloft/server/inventory"
	"hayloft/server/scheduler"
	"hayloft/store"
)

// Options say how a Controller works.
type Options struct {
	Name      string // of this server, kept with the leadership
	Scheduler scheduler.Scheduler
	Interval  time.Duration // SCHED_INTERVAL: time between scheduling passes; 0: as soon as there is something to place
	HostGrace time.Duration // how long a host may be without a session before it is given up
	Imports   int           // images imported at the same time
	Runner    command.Runner
	Open      func(disk.Repository) (repository.Repository, error) // repositories, which are not closed here; nil: drivers.Open
	Log       *slog.Logger
}

// Controller is what only one server of an installation does at a time: it places machines, imports
// images, and gives up hosts that stay away. It works while it holds the leadership.
type Controller struct {
	Options
	inv      *inventory.Inventory
	progress *Progress
	fence    store.Cond
	log      *slog.Logger
	now      func() time.Time
}

// NewController makes a controller; progress is where image imports tell how far they are.
func NewController(inv *inventory.Inventory, progress *Progress, o Options) *Controller {
	if o.Open == nil {
		o.Open = drivers.Open
	}
	return &Controller{Options: o, inv: inv, progress: progress, log: o.Log, now: time.Now}
}

// Run campaigns and works, again and again, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	for {
		lead, err := c.inv.Store.Campaign(ctx, "controller", c.Name)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.log.Warn("leadership not to be had, trying again", "error", err)
			if !pause(ctx, time.Second) {
				return ctx.Err()
			}
			continue
		}
		err = c.lead(ctx, lead)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.log.Warn("leadership lost", "error", err)
	}
}

// pause waits, and reports whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

var errLost = errors.New("another server leads")

func (c *Controller) lead(ctx context.Context, lead store.Leadership) error {
	c.log.Info("leading", "server", c.Name)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-lead.Lost():
			cancel(errLost)
		case <-stop:
		}
	}()
	c.fence = lead.Fence()
	importers := newImporters(c)
	defer func() {
		cancel(nil)
		importers.wait()
	}()
	importers.group.Go(func() { importers.sweep(ctx) })
	defer func() {
		limit := resignLimit
		if ctx.Err() == nil {
			limit = resignPatience
		}
		bounded, done := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer done()
		_ = lead.Resign(bounded)
	}()
	return c.loop(ctx, importers)
}

// How long a leadership may take to be given up, when this server ends and when it goes on after an error of the store: what is not
// given up keeps everybody waiting until its lease runs out.
const (
	resignLimit    = 2 * time.Second
	resignPatience = time.Minute
)

// loop reacts to what changes; everything it does can be done again.
func (c *Controller) loop(ctx context.Context, importers *importers) error {
	sub := c.inv.Subscribe(func(ch inventory.Change) bool {
		return ch.Kind == cloud.KindVM || ch.Kind == cloud.KindHost || ch.Kind == cloud.KindImage
	})
	defer sub.Close()
	absent := newAbsences(c.HostGrace)
	defer absent.stop()
	var tick <-chan time.Time
	if c.Interval > 0 {
		ticker := time.NewTicker(c.Interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	place := true
	for {
		importers.start(ctx)
		absent.watch(c.inv.AllHosts(), c.hasRunning)
		if place {
			if err := c.schedule(ctx); err != nil && !fault.Is(err, fault.Busy) {
				return err
			}
			// When somebody was quicker (Busy), what they wrote wakes the loop, and it looks again.
		}
		place = c.Interval == 0
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-sub.Wake():
			if err := c.cloned(ctx, sub.Take()); err != nil {
				return err
			}
		case <-tick:
			place = true
		case <-absent.wake:
			for _, host := range absent.take() {
				err := c.giveUp(ctx, host)
				if err != nil && !fault.Is(err, fault.WrongState) && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Busy) {
					return err
				}
			}
		}
	}
}
