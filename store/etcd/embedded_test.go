package etcd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/internal/leaktest"
	"hayloft/store"
	"hayloft/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		helper(dir)
	}
	leaktest.Main(m)
}

func embedded(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Embedded(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformanceEmbedded(t *testing.T) {
	m, err := join(t.Context(), Config{Dir: t.TempDir(), ElectionTTL: leaseTime})
	if err != nil {
		t.Fatal(err)
	}
	defer m.stop()
	storetest.Run(t, func(*testing.T) store.Store { return m.open(nil) })
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	var revision int64
	for round := range 3 {
		s := embedded(t, Config{Dir: dir})
		recs, _, err := s.List(ctx, "")
		if err != nil || len(recs) != round {
			t.Fatalf("round %d: %d records, %v", round, len(recs), err)
		}
		next, err := s.Txn(ctx, nil, []store.Op{store.Put(fmt.Sprint("key", round), []byte("kept"))})
		if err != nil || next <= revision {
			t.Fatalf("round %d: revision %d after %d, %v", round, next, revision, err)
		}
		revision = next
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v", info.Mode(), err)
	}
}

// TestListensNowhere looks at this process' own sockets: there are no new ones. Those of tests before it may still go.
func TestListensNowhere(t *testing.T) {
	before := sockets(t)
	embedded(t, Config{Dir: t.TempDir()})
	for socket := range sockets(t) {
		if !before[socket] {
			t.Errorf("%s is new", socket)
		}
	}
}

func sockets(t *testing.T) map[string]bool {
	found := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:") {
			found[target] = true
		}
	}
	return found
}

func TestCloseIsPrompt(t *testing.T) {
	s := embedded(t, Config{Dir: t.TempDir()})
	if _, err := s.Campaign(t.Context(), "boss", "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Watch(context.Background(), "", 0); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("Close took %v", took)
	}
}

func BenchmarkTxn(b *testing.B) {
	s, err := Embedded(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := make([]byte, 1024)
	for b.Loop() {
		if _, err := s.Txn(b.Context(), nil, []store.Op{store.Put("vm/1", value)}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList10000(b *testing.B) {
	s, err := Embedded(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	fill(b, s, 10_000)
	for b.Loop() {
		if recs, _, err := s.List(b.Context(), "vm/"); err != nil || len(recs) != 10_000 {
			b.Fatal(len(recs), err)
		}
	}
}

func fill(b *testing.B, s store.Store, n int) {
	value := make([]byte, 1024)
	for i := 0; i < n; i += 100 {
		var ops []store.Op
		for j := i; j < i+100; j++ {
			ops = append(ops, store.Put(fmt.Sprintf("vm/%010d", j), value))
		}
		if _, err := s.Txn(b.Context(), nil, ops); err != nil {
			b.Fatal(err)
		}
	}
}
