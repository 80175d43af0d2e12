package etcd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
	"hayloft/lab/port"
	"hayloft/store"
	"hayloft/store/storetest"
)

// cluster is three members on loopback ports.
type cluster struct {
	members   []*member
	endpoints []string
	stopOnce  []sync.Once
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	const n = 3
	c := &cluster{members: make([]*member, n), stopOnce: make([]sync.Once, n)}
	ports := freePorts(t, 2*n)
	peers := map[string]string{}
	for i := range n {
		peers[memberName(i)] = "http://127.0.0.1:" + ports[i]
		c.endpoints = append(c.endpoints, "http://127.0.0.1:"+ports[n+i])
	}
	var starting errgroup.Group
	for i := range n {
		cfg := Config{Dir: t.TempDir(), Name: memberName(i), PeerURL: peers[memberName(i)], ClientURL: c.endpoints[i],
			Members: peers, Heartbeat: 200 * time.Millisecond}
		starting.Go(func() (err error) {
			c.members[i], err = join(t.Context(), cfg)
			return err
		})
	}
	err := starting.Wait()
	t.Cleanup(func() {
		for i := range c.members {
			c.stop(t, i)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// patience is how long tests wait for what must come, on a machine with much else to do.
const patience = 2 * time.Minute

func memberName(i int) string { return "m" + strconv.Itoa(i) }

func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for len(ports) < n {
		free, err := port.Free("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		if number := strconv.Itoa(free); !slices.Contains(ports, number) {
			ports = append(ports, number)
		}
	}
	return ports
}

func (c *cluster) stop(t *testing.T, i int) {
	if c.members[i] == nil {
		return
	}
	c.stopOnce[i].Do(func() {
		if err := c.members[i].stop(); err != nil {
			t.Error(err)
		}
	})
}

// leader is the running member that leads, or -1.
func (c *cluster) leader() int {
	return slices.IndexFunc(c.members, func(m *member) bool {
		if m == nil {
			return false
		}
		select {
		case <-m.server.Server.StopNotify():
			return false
		default:
			return m.server.Server.Leader() == m.server.Server.MemberID()
		}
	})
}

// killLeader stops the leading member without letting it hand over.
func (c *cluster) killLeader(t *testing.T) {
	t.Helper()
	leader := c.leader()
	for begin := time.Now(); leader < 0; leader = c.leader() {
		if time.Since(begin) > patience {
			t.Fatal("the cluster has no leader")
		}
		runtime.Gosched()
	}
	c.members[leader].server.Server.HardStop()
	c.stop(t, leader)
}

func (c *cluster) connect(t *testing.T) *Store {
	t.Helper()
	s, err := Connect(t.Context(), ClientConfig{Endpoints: c.endpoints, ElectionTTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformanceCluster(t *testing.T) {
	c := startCluster(t)
	t.Run("Conformance", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) store.Store { return c.connect(t) })
	})
	t.Run("LeaderKilled", func(t *testing.T) { leaderKilled(t, c) })
	t.Run("QuorumLost", func(t *testing.T) { quorumLost(t, c) })
}

// leaderKilled writes while the leader dies: everything acknowledged is there after, and the watch has it.
func leaderKilled(t *testing.T, c *cluster) {
	s := c.connect(t)
	defer s.Close()
	ctx := t.Context()
	leadership, err := s.Campaign(ctx, "boss", "x")
	if err != nil {
		t.Fatal(err)
	}
	_, start, err := s.List(ctx, "count/")
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.Watch(ctx, "count/", start)
	if err != nil {
		t.Fatal(err)
	}
	const n = 60
	for i := range n {
		if i == n/3 {
			c.killLeader(t)
		}
		write(t, s, fmt.Sprintf("count/%03d", i))
	}
	recs, _, err := s.List(ctx, "count/")
	if err != nil || len(recs) != n {
		t.Fatalf("%d records of %d: %v", len(recs), n, err)
	}
	var seen []string
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	for len(seen) < n {
		var batch []store.Event
		select {
		case batch = <-events:
		case <-late.C:
		}
		if batch == nil {
			t.Fatalf("the watch closed, or went silent, after %d events", len(seen))
		}
		for _, e := range batch {
			seen = append(seen, e.Key)
		}
	}
	if !slices.IsSorted(seen) || len(slices.Compact(seen)) != n {
		t.Errorf("watched keys: %q", seen)
	}
	select {
	case <-leadership.Lost():
		t.Log("the leadership was lost with the leading member")
	default:
		if _, err := s.Txn(ctx, []store.Cond{leadership.Fence()}, nil); err != nil && !fault.Is(err, fault.Unavailable) {
			t.Errorf("the leadership is not lost, but its fence does not hold: %v", err)
		}
	}
}

// write creates the key, trying again while the cluster has no leader.
func write(t *testing.T, s store.Store, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		_, err := s.Txn(ctx, []store.Cond{{Key: key}}, []store.Op{store.Put(key, nil)})
		var conflict *store.Conflict
		switch {
		case err == nil, errors.As(err, &conflict): // done, now or by a try whose answer was lost
			return
		case !fault.Is(err, fault.Unavailable):
			t.Fatalf("Txn while the leader is gone: %v (%v)", err, fault.ClassOf(err))
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			t.Fatalf("no leader: %v", err)
		}
	}
}

// quorumLost stops the second member of three.
func quorumLost(t *testing.T, c *cluster) {
	s := c.connect(t)
	defer s.Close()
	c.killLeader(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := s.Txn(ctx, nil, []store.Op{store.Put("a", nil)})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("Txn without a quorum: %v (%v)", err, fault.ClassOf(err))
	}
	if _, err := s.Get(ctx, "a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Get without a quorum: %v (%v)", err, fault.ClassOf(err))
	}
}
