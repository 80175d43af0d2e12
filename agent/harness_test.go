package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hayloft/hypervisor"
	"hayloft/wire"
)

var quick = pace{
	coalesce: time.Millisecond, host: time.Hour, hostPause: time.Millisecond, usage: time.Hour, askAgain: 5 * time.Millisecond,
	retryMin: time.Millisecond, retryMax: 20 * time.Millisecond, renew: time.Hour, stopAtEnd: patience,
	drain: patience, drainTry: patience, drainWait: 5 * time.Millisecond, wait: patience, waitLog: patience,
}

// patience is how long tests wait for what must come, on a machine with much else to do.
const patience = 2 * time.Minute

// bench is a host with its world, on which agents come and go; orders are given by hand, without a server.
type bench struct {
	t     *testing.T
	w     *world
	cfg   Config
	agent *Agent
	life  *life
	end   context.CancelFunc
	hook  func(vm int64, point string)
	pace  pace
	plain bool // driver without optional interfaces
}

func newBench(t *testing.T) *bench {
	return &bench{t: t, w: newWorld(), pace: quick, cfg: Config{Name: "node1", StateDir: t.TempDir(), Starts: 2, Prepares: 2}}
}

func (b *bench) config() Config {
	b.life = &life{w: b.w}
	cfg := b.cfg
	cfg.Network, cfg.Way = fakeNetwork{b.life}, fakeWay{b.life}
	full := func(name string) hypervisor.Driver {
		if b.plain {
			return fakeDriver{b.life, name}
		}
		return fullDriver{fakeDriver{b.life, name}}
	}
	cfg.Hypervisors = map[string]hypervisor.Driver{"qemu": full("qemu")}
	return cfg
}

// begin lets a new agent work on the host.
func (b *bench) begin() *Agent {
	b.t.Helper()
	a, err := New(b.config())
	if err != nil {
		b.t.Fatal(err)
	}
	a.pace, a.hook, a.noSync = b.pace, b.hook, true
	ctx, cancel := context.WithCancel(context.Background())
	if err := a.open(ctx); err != nil {
		b.t.Fatal(err)
	}
	b.agent, b.end = a, cancel
	b.t.Cleanup(func() { b.stop() })
	return a
}

// stop ends the agent as a signal would.
func (b *bench) stop() {
	if b.agent == nil {
		return
	}
	b.end()
	if err := b.agent.close(); err != nil {
		b.t.Error(err)
	}
	b.agent = nil
}

// kill ends the agent as kill -9 would: from this moment none of its calls has an effect. Called from a hook.
func (b *bench) kill() {
	b.end() // first, so that no other worker takes a dead driver for a failed step
	b.life.dead.Store(true)
	b.agent.records.db.Close()
}

func (b *bench) order(assignments ...*wire.Assignment) {
	b.t.Helper()
	if err := b.agent.accept(&wire.Order{Full: true, Assignments: assignments}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) report(vm int64) *wire.MachineReport {
	b.agent.mu.Lock()
	defer b.agent.mu.Unlock()
	if m := b.agent.machines[vm]; m != nil {
		return m.report
	}
	return nil
}

// until waits until the machine is reported in one of the phases for the epoch.
func (b *bench) until(vm int64, epoch uint64, phases ...wire.Phase) *wire.MachineReport {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		report := b.report(vm)
		for _, phase := range phases {
			if report != nil && report.Epoch == epoch && report.Phase == phase {
				return report
			}
		}
		select {
		case <-b.agent.bell:
		case <-b.agent.ctx.Done():
			return nil
		case <-deadline:
			b.t.Fatalf("machine %d is not %v for epoch %d: %v; done: %s", vm, phases, epoch, report, b.w.happened(int(vm)))
		}
	}
}

// idle waits until no worker is busy.
func (b *bench) idle() {
	b.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		b.agent.mu.Lock()
		busy := false
		for _, m := range b.agent.machines {
			busy = busy || m.working
		}
		b.agent.mu.Unlock()
		if !busy {
			return
		}
		time.Sleep(time.Millisecond)
	}
	b.t.Fatal("workers are still busy")
}

// assignment of machine vm with one disk, one NIC, a kernel and a context.
func assignment(vm int64, epoch uint64, goal wire.Goal, changes ...func(*wire.Assignment)) *wire.Assignment {
	repo := &wire.Repository{Id: 1, Driver: "path", Path: "/images"}
	a := &wire.Assignment{
		Vm: vm, Epoch: epoch, Goal: goal, System: &wire.Repository{Id: 2, Driver: "path", Path: "/system"},
		Machine: &wire.Machine{
			Name: fmt.Sprint("vm-", vm), Hypervisor: "qemu", Vcpu: 1, MemoryMb: 64,
			Boot:          &wire.Boot{Kernel: &wire.Image{Name: "kernel", Repository: repo}},
			Disks:         []*wire.Disk{{Id: 0, Target: "vda", Image: &wire.Image{Name: "tiny", Repository: repo}}},
			Nics:          []*wire.NIC{{Id: 0, Mac: "02:00:00:00:00:01", Ips: []string{"10.0.0.5"}, Prefix: 24, Network: &wire.Network{Id: 7, Name: "net", Bridge: "br7", Gateway: "10.0.0.1/24"}}},
			Context:       map[string][]byte{"context.sh": []byte("ETH0_IP=10.0.0.5")},
			ContextImages: []*wire.NamedImage{{Name: "extra", Image: &wire.Image{Name: "extra-image", Repository: repo}}},
		},
	}
	for _, change := range changes {
		change(a)
	}
	return proto.Clone(a).(*wire.Assignment)
}

func hard(a *wire.Assignment) { a.Hard = true }

func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not say %q", text, part)
	}
}
