package rbd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
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

// children are the ids of this process's children that run QEMU.
func children(t *testing.T) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			name, _ := os.ReadFile("/proc/" + field + "/comm")
			var pid int
			if fmt.Sscan(field, &pid); strings.HasPrefix(string(name), "qemu-storage") {
				found[pid] = true
			}
		}
	}
	return found
}

// bounded runs f, which must end by itself with an error of class want long before minutes have passed.
func bounded(t *testing.T, what string, want fault.Class, f func() error) {
	t.Helper()
	begun := time.Now()
	err := f()
	class(t, what, err, want)
	if took := time.Since(begun); took > 2*time.Minute {
		t.Errorf("%s took %v", what, took)
	}
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
