package rbd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/children"
)

func class(t *testing.T, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

// written makes an object.
func written(t *testing.T, r *Repository, name, content string) {
	t.Helper()
	w, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, r *Repository, name string) string {
	t.Helper()
	s, err := r.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, s.Size())
	if _, err := s.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// admin runs rbd in the repository's namespace as the cluster's administrator.
func admin(t *testing.T, r *Repository, args ...string) string {
	t.Helper()
	return must(t, "rbd", append([]string{"--pool", r.pool, "--namespace", r.namespace}, args...)...)
}

// daemons are the ids of this process's children that run QEMU.
func daemons(t *testing.T) []int {
	t.Helper()
	var found []int
	for _, pid := range children.Of(os.Getpid()) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.HasPrefix(string(name), "qemu-storage") {
			found = append(found, pid)
		}
	}
	return found
}

// newDaemons are those that were not there before: n of them.
func newDaemons(t *testing.T, before []int, n int) []int {
	t.Helper()
	found := slices.DeleteFunc(daemons(t), func(pid int) bool { return slices.Contains(before, pid) })
	if len(found) != n {
		t.Fatalf("%d new children run QEMU, want %d", len(found), n)
	}
	return found
}

// patience is with what works, on a machine with much else to do; unanswered is how long a request waits that nobody
// answers: all others take far less.
const (
	patience   = 2 * time.Minute
	unanswered = 20 * time.Second
)

// bounded runs f, which must end by itself with an error of class want.
func bounded(t *testing.T, what string, want fault.Class, f func() error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		class(t, what, err, want)
	case <-time.After(5 * time.Minute):
		t.Errorf("%s does not end", what)
	}
}

// attempt is one for allBounded.
type attempt struct {
	what string
	do   func() error
}

// allBounded is bounded for several at once: each takes as long as its limit.
func allBounded(t *testing.T, want fault.Class, attempts ...attempt) {
	t.Helper()
	var group sync.WaitGroup
	for _, a := range attempts {
		group.Go(func() { bounded(t, a.what, want, a.do) })
	}
	group.Wait()
}

// again repeats what must work soon.
func again(t *testing.T, what string, f func() error) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begun) > 3*time.Minute {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
