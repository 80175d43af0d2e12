// Package kernelcachetest is the suite that every kernel cache passes. It runs in the kernel guest, as root, on two disks.
package kernelcachetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/internal/command"
)

// Instance is whose the caches of the suite are.
const Instance = "suite-1"

const (
	sourceSize = 4 << 20
	localSize  = 64 << 20
	// dirtyAt is where dirty writes.
	dirtyAt = 2 << 20
	// endless is what none of it may take, on a slow machine.
	endless = 2 * time.Minute
)

// Kernel is a driver, and what the suite does to the kernel behind its back.
type Kernel struct {
	// Disks are two empty block devices of 512 MiB at least.
	Disks []string
	// Open makes a driver as a process does that starts, with a patience of a few seconds.
	Open func(t *testing.T, run command.Runner) kernelcache.Driver
	// Leave takes a cache's devices from the kernel as the end of a host does: what is dirty stays on the local volume.
	Leave func(t *testing.T, s kernelcache.Spec)
	// Mapped are the names of the mapped devices that the driver makes for a Spec: the suite makes one of each of its own.
	Mapped func(s kernelcache.Spec) []string
}

type suite struct {
	*testing.T
	Kernel
	driver kernelcache.Driver
	pairs  []kernelcache.Spec // sources and local volumes
	used   int                // how many of them this part has
}

type part struct {
	name string
	run  func(s *suite)
}

// Life is the part of the suite about one cache, and several. A driver runs all parts, in tests of their own: the guest is slow.
func Life(t *testing.T, k Kernel) {
	run(t, k, []part{{"life", life}, {"modes that are not there", modes}, {"several at once", several}})
}

// Host is the part about what else the host has and does.
func Host(t *testing.T, k Kernel) {
	run(t, k, []part{{"foreign", foreign}, {"owner", owner}, {"host that ends", hostEnds}})
}

// Faults is the part about what fails.
func Faults(t *testing.T, k Kernel) {
	run(t, k, []part{{"source that fails", sourceFails}, {"programs that fail", programsFail}})
}

func run(t *testing.T, k Kernel, list []part) {
	t.Helper()
	udevOwns(t)
	s := &suite{T: t, Kernel: k, pairs: makePairs(t, k.Disks), driver: k.Open(t, nil)}
	if err := s.driver.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, part := range list {
		t.Run(part.name, func(t *testing.T) {
			one := *s
			one.T = t
			began := time.Now()
			part.run(&one)
			t.Logf("%.1f s", time.Since(began).Seconds())
			if names, err := one.driver.List(context.Background()); err != nil || len(names) > 0 {
				t.Errorf("left behind: %v, %v", names, err)
			}
		})
	}
}

func (s *suite) has(mode cache.Mode) bool { return slices.Contains(s.driver.Modes(), mode) }

func (s *suite) attach(spec kernelcache.Spec) kernelcache.Status {
	s.Helper()
	status, err := s.driver.Attach(s.Context(), spec)
	if err != nil {
		s.Fatal(err)
	}
	return status
}

func (s *suite) status(spec kernelcache.Spec) kernelcache.Status {
	s.Helper()
	status, err := s.driver.Status(s.Context(), spec)
	if err != nil {
		s.Fatal(err)
	}
	return status
}

func (s *suite) flush(spec kernelcache.Spec) {
	s.Helper()
	if err := s.driver.Flush(s.Context(), spec, nil); err != nil {
		s.Fatal(err)
	}
}

func (s *suite) detach(spec kernelcache.Spec) {
	s.Helper()
	if err := s.driver.Detach(s.Context(), spec); err != nil {
		s.Fatal(err)
	}
}

// fails wants an error of a class.
func (s *suite) fails(err error, class fault.Class, what string) {
	s.Helper()
	if !fault.Is(err, class) {
		s.Errorf("%s: %v, want class %v", what, err, class)
	}
}

func (s *suite) list(want ...string) {
	s.Helper()
	got, err := s.Open(s.T, nil).List(s.Context())
	if err != nil || !slices.Equal(got, want) {
		s.Errorf("there are %q (%v), want %q", got, err, want)
	}
}

// shows wants content on a device, or a part of it from an offset on.
func (s *suite) shows(device string, offset int64, want []byte, what string) {
	s.Helper()
	got, err := read(device, offset, len(want))
	if err != nil {
		s.Errorf("%s: %v", what, err)
		return
	}
	if at := differ(got, want); at >= 0 {
		s.Errorf("%s: byte %d of %s is not what it should be", what, offset+int64(at), device)
	}
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// write writes to the device and to the model of it, and has it synced.
func (s *suite) write(device string, model []byte, offset int64, data []byte) {
	s.Helper()
	if err := write(device, offset, data); err != nil {
		s.Fatal(err)
	}
	copy(model[offset:], data)
}

// dirty writes until the cache says that the source has not got everything: what is dirty goes there by itself in a while.
func (s *suite) dirty(spec kernelcache.Spec, device string, model []byte) kernelcache.Status {
	s.Helper()
	for try := range 20 {
		s.write(device, model, dirtyAt, pattern(100+try, 1<<20))
		if status := s.status(spec); status.Dirty > 0 {
			return status
		}
	}
	s.Fatal("nothing is ever dirty")
	panic("unreachable")
}

// pattern is content that differs with the seed, and from place to place; size a multiple of 8.
func pattern(seed, size int) []byte {
	p := make([]byte, size)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := 0; i+8 <= size; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	return p
}

func named(n int) string { return fmt.Sprintf("7.%d", n) }
