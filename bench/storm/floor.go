package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hayloft/internal/command"
	"hayloft/lab/fleet"
	"hayloft/network"
	"hayloft/network/bridge"
)

const floorBridge = "hlbr0" // as the pattern's, which is in a container's configuration

// starter starts twins that are prepared.
type starter interface {
	// prepare makes everything that can be there before the time is taken.
	prepare(ctx context.Context, twins []twin) error
	// start starts one and returns when it runs.
	start(ctx context.Context, t twin) error
	// close lets go of what is held; machines go with the site.
	close()
}

// floor measures a plain loop.
func (b *bench) floor(ctx context.Context) (result, error) {
	say("floor: %d machines (%s) like %s", b.options.vms, b.options.kind, b.pattern.vm.Name)
	site, err := fleet.NewSite(floorKind, b.options.dir)
	if err != nil {
		return result{}, err
	}
	r, err := b.loop(ctx, site)
	began := time.Now()
	err = errors.Join(err, site.Close(context.WithoutCancel(ctx)))
	r.TakeDown = time.Since(began).Seconds()
	if err == nil {
		err = leavesNothing(site)
	}
	return r, err
}

func (b *bench) loop(ctx context.Context, site *fleet.Site) (result, error) {
	var r result
	if err := os.MkdirAll(filepath.Join(site.Dir, agentDir), 0o711); err != nil {
		return r, err
	}
	_, err := command.Exec{}.Run(ctx, command.Cmd{Name: "cp", Args: []string{"-a", b.pattern.store, filepath.Join(site.Dir, storeDir)}})
	if err != nil {
		return r, err
	}
	var twins []twin
	for i := range b.options.vms {
		t := b.pattern.twin(site, i)
		twins = append(twins, t)
		if err := os.MkdirAll(t.dir, 0o711); err != nil {
			return r, err
		}
	}
	var driver *bridge.Driver
	err = site.Namespace.Inside(func() error {
		var err error
		if driver, err = bridge.New(bridge.Config{Instance: site.Name, Log: quiet()}); err != nil {
			return err
		}
		return driver.Ensure(ctx, theNetwork())
	})
	if err != nil {
		return r, err
	}
	defer driver.Close()
	var s starter = &qemuStarter{pattern: b.pattern, site: site, bridge: driver, cpu: b.shape().CPU}
	if b.options.kind == "lxc" {
		s = &lxcStarter{pattern: b.pattern, site: site, bridge: driver}
	}
	defer s.close()
	if err := s.prepare(ctx, twins); err != nil {
		return r, err
	}
	return b.race(ctx, site, s, twins)
}

func theNetwork() network.Network {
	return network.Network{ID: 0, Name: "floor", Bridge: floorBridge, Gateway: netip.MustParsePrefix("10.66.0.1/24")}
}

func (t twin) port(kind network.Kind) network.Port {
	return network.Port{Name: fmt.Sprintf("one-%d-0", t.id), Kind: kind, Machine: t.id, MAC: t.mac,
		IPs: []netip.Addr{netip.MustParseAddr(t.ip)}, Filter: true, UID: t.uid}
}

// race starts the twins, so many at a time, and waits for their answers.
func (b *bench) race(ctx context.Context, site *fleet.Site, s starter, twins []twin) (result, error) {
	var r result
	ctx, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	host, err := fleet.HostSeconds()
	if err != nil {
		return r, err
	}
	machines, err := site.MachineSeconds()
	if err != nil {
		return r, err
	}
	var mu sync.Mutex
	var running, answers []float64
	began := time.Now()
	show := newTicker(len(twins), began)
	note := func(list *[]float64, failed error) {
		mu.Lock()
		defer mu.Unlock()
		if failed != nil {
			r.Failed = append(r.Failed, failed.Error())
		} else {
			*list = append(*list, time.Since(began).Seconds())
		}
		if time.Now().After(show.next) {
			show.say(len(running), len(answers), len(r.Failed))
		}
	}
	var loops, probes sync.WaitGroup
	next := make(chan twin)
	for range b.options.concurrency {
		loops.Go(func() {
			for t := range next {
				if err := s.start(ctx, t); err != nil {
					note(nil, fmt.Errorf("%s: %w", t.name, err))
					continue
				}
				note(&running, nil)
				probes.Go(func() {
					_, err := site.Prober.Answers(ctx, fleet.Target{Name: t.name, IP: t.ip, MAC: t.mac, Bridge: floorBridge, Address: b.options.kind == "lxc"})
					if err != nil {
						err = fmt.Errorf("%s: %w", t.name, err)
					}
					note(&answers, err)
				})
			}
		})
	}
	for _, t := range twins {
		next <- t
	}
	close(next)
	loops.Wait()
	probes.Wait()
	r.spans(running, answers)
	hostAfter, err := fleet.HostSeconds()
	if err != nil {
		return r, err
	}
	machinesAfter, err := site.MachineSeconds()
	r.CPU = cpu{Machines: machinesAfter - machines, Host: hostAfter - host}
	return r, err
}
