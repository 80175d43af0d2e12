package etcd

import (
	"context"
	"errors"
	"fmt"
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

// cluster is three members on loopback ports. Another leads when the leader was silent for ten heartbeats.
type cluster struct {
	members   []*member
	endpoints []string
	stopOnce  []sync.Once
}

func startCluster(t *testing.T, heartbeat time.Duration) *cluster {
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
			Members: peers, Heartbeat: heartbeat}
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

const (
	// patience is how long tests wait for what must come, on a machine with much else to do.
	patience = 2 * time.Minute
	// leaseTime is how long a process may stand still and go on leading.
	leaseTime = 30 * time.Second
)

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
		time.Sleep(10 * time.Millisecond)
	}
	c.members[leader].server.Server.HardStop()
	c.stop(t, leader)
}

func (c *cluster) connect(t *testing.T) *Store {
	t.Helper()
	s, err := Connect(t.Context(), ClientConfig{Endpoints: c.endpoints, ElectionTTL: leaseTime, DialTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestConformanceCluster has a leader that a slow disk does not cost its office.
func TestConformanceCluster(t *testing.T) {
	c := startCluster(t, time.Second)
	storetest.Run(t, func(t *testing.T) store.Store { return c.connect(t) })
}

func TestClusterLosesMembers(t *testing.T) {
	c := startCluster(t, 200*time.Millisecond)
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
	_, start := list(t, s, "count/")
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
	if recs, _ := list(t, s, "count/"); len(recs) != n {
		t.Fatalf("%d records of %d", len(recs), n)
	}
	var seen []string
	late := time.NewTimer(patience)
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
	_, err = s.Txn(ctx, []store.Cond{leadership.Fence()}, nil)
	if err != nil && !fault.Is(err, fault.Unavailable) {
		select {
		case <-leadership.Lost():
			t.Log("the leadership was lost with the leading member")
		case <-time.After(patience):
			t.Errorf("the leadership is not lost, but its fence does not hold: %v", err)
		}
	}
}

// write creates the key.
func write(t *testing.T, s store.Store, key string) {
	t.Helper()
	trying(t, func(ctx context.Context) error {
		_, err := s.Txn(ctx, []store.Cond{{Key: key}}, []store.Op{store.Put(key, nil)})
		var conflict *store.Conflict
		if errors.As(err, &conflict) { // done by a try whose answer was lost
			return nil
		}
		return err
	})
}

func list(t *testing.T, s store.Store, prefix string) (recs []store.Record, revision int64) {
	t.Helper()
	trying(t, func(ctx context.Context) (err error) {
		recs, revision, err = s.List(ctx, prefix)
		return err
	})
	return recs, revision
}

// trying calls do again while the cluster has no leader.
func trying(t *testing.T, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		err := do(ctx)
		switch {
		case err == nil:
			return
		case !fault.Is(err, fault.Unavailable):
			t.Fatalf("while the leader is gone: %v (%v)", err, fault.ClassOf(err))
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
