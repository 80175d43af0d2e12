package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"hayloft/cloud"
	"hayloft/lab/fleet"
	"hayloft/lab/golden"
)

// Kinds of runs, as their names have them.
const (
	hayloftKind = "storm"
	floorKind   = "floor"
)

// bench measures Hayloft and the floor.
type bench struct {
	options options
	set     golden.Set
	scratch string
	pattern *pattern // how Hayloft starts a machine; nil until one was seen
}

// measure does one run in the order asked for.
func (b *bench) measure(ctx context.Context, n int) (measurement, error) {
	m := measurement{First: "hayloft"}
	if b.options.floor && (b.options.order == floorFirst || b.options.order == alternate && n%2 == 1) {
		m.First = "floor"
	}
	last := n == b.options.runs-1
	if m.First == "floor" {
		if err := b.findPattern(ctx); err != nil {
			return m, err
		}
		if err := b.measureFloor(ctx, &m); err != nil {
			return m, err
		}
	}
	var err error
	if m.Hayloft, err = b.hayloft(ctx, b.options.vms, b.options.keep && last); err != nil {
		return m, err
	}
	if m.First == "hayloft" && b.options.floor {
		if err := b.measureFloor(ctx, &m); err != nil {
			return m, err
		}
	}
	if m.Floor != nil && m.Floor.LastAnswer > 0 {
		m.Ratio = m.Hayloft.LastAnswer / m.Floor.LastAnswer
	}
	return m, nil
}

func (b *bench) measureFloor(ctx context.Context, m *measurement) error {
	r, err := b.floor(ctx)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	m.Floor = &r
	return nil
}

// findPattern has one machine started by Hayloft to see how it does that.
func (b *bench) findPattern(ctx context.Context) error {
	if b.pattern != nil {
		return nil
	}
	r, err := b.hayloft(ctx, 1, false)
	if err == nil && len(r.Failed) > 0 {
		err = errors.New(r.Failed[0])
	}
	return err
}

func (b *bench) template() string {
	if b.options.kind == "lxc" {
		return fleet.ContainerTemplate
	}
	return fleet.VMTemplate
}

func (b *bench) shape() fleet.Shape {
	s := fleet.DefaultShape(b.options.vms, runtime.NumCPU())
	s.Chipset = b.options.chipset
	return s
}

// hayloft measures a deployment by a new Hayloft, whose host has none of the images yet.
func (b *bench) hayloft(ctx context.Context, n int, keep bool) (result, error) {
	say("hayloft: %d machines (%s)", n, b.options.kind)
	f, err := fleet.Start(ctx, fleet.Config{Binary: b.options.binary, Kind: hayloftKind, Dir: b.options.dir,
		Args: []string{"--starts", fmt.Sprint(b.options.concurrency), "--log-level", "warn"}})
	if err != nil {
		return result{}, err
	}
	r, err := b.deploy(ctx, f, n)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, f.Log(20))
	}
	if keep && err == nil {
		say("left running: export HAYLOFT_ENDPOINT=%s; storm -down takes it down", f.Endpoint())
		return r, f.Keep()
	}
	began := time.Now()
	err = errors.Join(err, f.Stop(context.WithoutCancel(ctx)))
	r.TakeDown = time.Since(began).Seconds()
	if err == nil {
		err = leavesNothing(f.Site)
	}
	return r, err
}

func leavesNothing(s *fleet.Site) error {
	checks, err := s.Leftovers()
	if err != nil {
		return err
	}
	return nothing(checks)
}

func (b *bench) deploy(ctx context.Context, f *fleet.Fleet, n int) (result, error) {
	var r result
	if err := f.RegisterGolden(ctx, b.set, nil); err != nil {
		return r, err
	}
	if err := f.CreateNetwork(ctx); err != nil {
		return r, err
	}
	if err := f.CreateTemplates(ctx, b.shape()); err != nil {
		return r, err
	}
	idle, err := f.Usage()
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	began := time.Now()
	ids, err := f.Deploy(ctx, b.template(), n)
	if err != nil {
		return r, err
	}
	show := newTicker(n, began)
	machines, err := f.Follow(ctx, ids, show.update)
	if err != nil {
		return r, err
	}
	full, err := f.Usage()
	if err != nil {
		return r, err
	}
	r.fill(began, machines)
	r.Stages = stagesOf(machines)
	r.CPU = cpu{Machines: full.Machines - idle.Machines, Hayloft: full.Hayloft() - idle.Hayloft(), Host: full.Host - idle.Host}
	r.MemoryIdle, r.MemoryFull = memoryOf(idle), memoryOf(full)
	for _, m := range machines {
		r.ReadBytes += m.Timing.ReadBytes
		r.GivenBytes += m.Timing.GivenBytes
		if b.pattern == nil && m.LCM == cloud.LCMRunning && m.Err == nil {
			dir := filepath.Join(b.scratch, "pattern")
			if err := os.Mkdir(dir, 0o711); err != nil {
				return r, err
			}
			if b.pattern, err = takePattern(ctx, f, m, dir); err != nil {
				return r, fmt.Errorf("looking how %s was started: %w", m.Name, err)
			}
		}
	}
	return r, nil
}
