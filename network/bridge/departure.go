package bridge

import (
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
)

// departures are ports whose rules wait to be deleted. The kernel waits for its readers, about 10 ms, in every
// transaction that follows a deletion; so ports that leave at about the same time share one.
type departures struct {
	mu      sync.Mutex
	waiting []*departure
}

// departuresAtOnce keeps the kernel's answers to one transaction within a socket's buffer.
const departuresAtOnce = 32

type departure struct {
	port string
	done bool // guarded, as err, by rules.mu
	err  error
}

func (l *departures) add(port string) *departure {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &departure{port: port}
	l.waiting = append(l.waiting, d)
	return d
}

func (l *departures) take() []*departure {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.waiting
	l.waiting = nil
	return all
}

// dropPort takes a port's rules away; a port without rules is fine. Whoever comes first through the lock does it
// for all that wait.
func (r *rules) dropPort(port string) error {
	mine := r.leave.add(port)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !mine.done {
		for some := range slices.Chunk(r.leave.take(), departuresAtOnce) {
			err := r.dropTogether(some)
			for _, d := range some {
				d.done, d.err = true, err
			}
		}
	}
	return mine.err
}

func (r *rules) dropTogether(all []*departure) error {
	c := &nftables.Conn{}
	seen := make(map[string]bool, len(all))
	for _, d := range all {
		if seen[d.port] {
			continue
		}
		seen[d.port] = true
		have, err := r.chainExists(nftables.TableFamilyBridge, portChain+d.port)
		if err != nil {
			return err
		}
		if !have {
			continue
		}
		if err := c.SetDeleteElements(r.members, []nftables.SetElement{{Key: interfaceName(d.port)}}); err != nil {
			return fmt.Errorf("port %s: rules: %w", d.port, err)
		}
		chain := &nftables.Chain{Name: portChain + d.port, Table: r.filter}
		c.FlushChain(chain)
		c.DelChain(chain)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("rules of %d ports: delete: %w", len(seen), err)
	}
	return nil
}
