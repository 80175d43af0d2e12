package agent

import (
	"context"
	"net/netip"
	"os"
	"sync"

	"google.golang.org/protobuf/proto"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/network"
	"hayloft/wire"
)

// networks are those this host has made. One at a time is made or released, each by its own lock.
type networks struct {
	driver network.Driver
	mu     sync.Mutex
	made   map[int64]*madeNetwork
}

type madeNetwork struct {
	mu   sync.RWMutex // read: ports are plugged; write: made or released
	spec *wire.Network
	kept bool // in the records

	ensured bool // by this agent, as spec says
}

func (n *networks) load(all []*wire.Network) {
	n.made = make(map[int64]*madeNetwork)
	for _, spec := range all {
		n.made[spec.Id] = &madeNetwork{spec: spec, kept: true}
	}
}

func (n *networks) get(id int64) *madeNetwork {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.made[id] == nil {
		n.made[id] = new(madeNetwork)
	}
	return n.made[id]
}

func describeNetwork(w *wire.Network) (network.Network, error) {
	n := network.Network{ID: int(w.Id), Name: w.Name, Bridge: w.Bridge, NAT: w.Nat, MTU: int(w.Mtu), PhyDev: w.Phydev}
	if w.Gateway == "" {
		return n, nil
	}
	var err error
	if n.Gateway, err = netip.ParsePrefix(w.Gateway); err != nil {
		return n, fault.Errorf(fault.Invalid, "network %d %s: gateway: %w", w.Id, w.Name, err)
	}
	return n, nil
}

// plug makes networks and ports of the machine ready, and returns the open taps, which are also in nics.
func (p *pass) plug(ctx context.Context, nics []hypervisor.NIC) (taps []*os.File, err error) {
	kind := p.needs().port
	if kind == "" {
		return nil, nil
	}
	for i, n := range p.want.Machine.Nics {
		tap, err := p.plugOne(ctx, n, kind)
		if tap != nil {
			taps = append(taps, tap)
		}
		if err != nil {
			return taps, err
		}
		nics[i].Tap = tap
	}
	return taps, nil
}

func (p *pass) plugOne(ctx context.Context, n *wire.NIC, kind network.Kind) (*os.File, error) {
	ips, err := addresses(p.vm(), n)
	if err != nil {
		return nil, err
	}
	spec, err := describeNetwork(n.Network)
	if err != nil {
		return nil, err
	}
	uid, _ := p.user()
	port := network.Port{Name: portName(p.vm(), n.Id), Kind: kind, Machine: p.id(), MAC: n.Mac, IPs: ips, Filter: n.Filter, UID: uid}
	made := p.networks.get(n.Network.Id)
	if tap, usable, err := p.plugInto(ctx, made, n.Network, spec, port); usable && err == nil {
		return tap, nil
	} else if ctx.Err() != nil {
		return nil, err
	}
	// Not made yet, made otherwise, or taken away behind our back: by others, or by our own release of a
	// network that nobody wanted a moment ago, which may come once more in between.
	for range plugAttempts {
		if err := p.ensure(ctx, made, n.Network, spec); err != nil {
			return nil, err
		}
		if tap, usable, err := p.plugInto(ctx, made, n.Network, spec, port); usable {
			return tap, err
		}
	}
	return nil, fault.Errorf(fault.Busy, "network %d %s: wanted in two ways at the same time", spec.ID, spec.Name)
}

// plugAttempts bounds how often a network is made for one port.
const plugAttempts = 8

// plugInto makes the port on a network that was ensured as wanted; otherwise it is not usable. Many ports
// are plugged at a time, and none while the network is made or released.
func (p *pass) plugInto(ctx context.Context, made *madeNetwork, want *wire.Network, spec network.Network, port network.Port) (tap *os.File, usable bool, err error) {
	made.mu.RLock()
	defer made.mu.RUnlock()
	if !made.ensured || !proto.Equal(made.spec, want) {
		return nil, false, nil
	}
	tap, err = p.networks.driver.Plug(ctx, spec, port)
	return tap, true, err
}

func (p *pass) ensure(ctx context.Context, made *madeNetwork, want *wire.Network, spec network.Network) error {
	made.mu.Lock()
	defer made.mu.Unlock()
	if !made.kept || !proto.Equal(made.spec, want) {
		if err := p.records.addNetwork(want); err != nil {
			return err
		}
		made.spec, made.kept = want, true
	}
	err := p.networks.driver.Ensure(ctx, spec)
	made.ensured = err == nil
	return err
}

// unplug takes the machine's ports away.
func (p *pass) unplug(ctx context.Context) error {
	if len(p.r.Ports) == 0 {
		return nil
	}
	for _, port := range p.r.Ports {
		err := p.step(ctx, "unplug", func() error { return p.networks.driver.Unplug(ctx, port) })
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return p.note(ctx, "note unplugged", func(r *reached) { r.Ports = nil })
}

// releaseUnused gives up networks that no machine of this host uses. One that is still busy is tried again
// when the next machine has gone.
func (a *Agent) releaseUnused(ctx context.Context) {
	a.networks.mu.Lock()
	var candidates []int64
	for id := range a.networks.made {
		if !a.uses(id) {
			candidates = append(candidates, id)
		}
	}
	a.networks.mu.Unlock()
	for _, id := range candidates {
		if err := a.release(ctx, id); err != nil && ctx.Err() == nil && !fault.Is(err, fault.Busy) {
			a.log.Warn("network: not released", "network", id, "error", err)
		}
	}
}

func (a *Agent) release(ctx context.Context, id int64) error {
	made := a.networks.get(id)
	made.mu.Lock()
	defer made.mu.Unlock()
	if !made.kept || a.uses(id) {
		return nil
	}
	spec, err := describeNetwork(made.spec)
	if err != nil {
		return err
	}
	if err := a.networks.driver.Release(ctx, spec); err != nil {
		return err
	}
	if err := a.records.removeNetwork(id); err != nil {
		return err
	}
	made.kept, made.ensured = false, false
	a.log.Info("network: released", "network", id, "name", spec.Name)
	return nil
}

// uses says whether a machine that is assigned to this host, or was left here, has a NIC on the network.
func (a *Agent) uses(id int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.machines {
		if m.finished {
			continue
		}
		for _, n := range m.assignment.GetMachine().GetNics() {
			if n.GetNetwork().GetId() == id {
				return true
			}
		}
	}
	return false
}
