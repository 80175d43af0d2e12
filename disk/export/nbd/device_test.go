package nbd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"hayloft/disk/export"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// memory is a Device in memory, all of whose methods can be made to fail or wait. It is not Quick, see quickMemory.
type memory struct {
	mu       sync.Mutex
	data     []byte
	readOnly bool
	hook     func(ctx context.Context, op string, offset int64) error // nil: nothing
	flushes  int
	zeroed   []export.ZeroFlags
	extents  []export.Extent // nil: one of data
}

func newMemory(size int) *memory { return &memory{data: make([]byte, size)} }

func (m *memory) do(ctx context.Context, op string, offset int64, f func()) error {
	m.mu.Lock()
	hook := m.hook
	m.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, op, offset); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	return nil
}

// when makes later operations do what f does first.
func (m *memory) when(f func(ctx context.Context, op string, offset int64) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = f
}

// seen gives what was done so far. The race detector does not see that replies come after what they tell of.
func (m *memory) seen() (data []byte, zeroed []export.ZeroFlags, flushes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.data), slices.Clone(m.zeroed), m.flushes
}

func (m *memory) Size() int64    { return int64(len(m.data)) }
func (m *memory) ReadOnly() bool { return m.readOnly }
func (m *memory) ReadAt(ctx context.Context, p []byte, offset int64) error {
	return m.do(ctx, "read", offset, func() { copy(p, m.data[offset:]) })
}
func (m *memory) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	op := "write"
	if fua {
		op = "write-fua"
	}
	return m.do(ctx, op, offset, func() { copy(m.data[offset:], p) })
}
func (m *memory) Flush(ctx context.Context) error {
	return m.do(ctx, "flush", 0, func() { m.flushes++ })
}
func (m *memory) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	return m.do(ctx, "zero", offset, func() {
		clear(m.data[offset : offset+length])
		m.zeroed = append(m.zeroed, z)
	})
}
func (m *memory) Prefetch(ctx context.Context, offset, length int64) error {
	return m.do(ctx, "prefetch", offset, func() {})
}
func (m *memory) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	var all []export.Extent
	err := m.do(ctx, "extents", offset, func() { all = m.extents })
	if all == nil {
		all = []export.Extent{{Length: m.Size()}}
	}
	for _, e := range all {
		if e.Offset+e.Length > offset && e.Offset < offset+length && err == nil && !yield(clip(e, offset, length)) {
			break
		}
	}
	return err
}

func clip(e export.Extent, offset, length int64) export.Extent {
	end := min(e.Offset+e.Length, offset+length)
	e.Offset = max(e.Offset, offset)
	e.Length = end - e.Offset
	return e
}

// quickMemory hits below missFrom.
type quickMemory struct {
	*memory
	missFrom int64
	err      error // of tries
}

func (m quickMemory) TryReadAt(p []byte, offset int64) (bool, error) {
	if offset+int64(len(p)) > m.missFrom || m.err != nil {
		return false, m.err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.data[offset:])
	return true, nil
}

func (m quickMemory) TryWriteAt(p []byte, offset int64) (bool, error) {
	if offset+int64(len(p)) > m.missFrom || m.err != nil {
		return false, m.err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[offset:], p)
	return true, nil
}

func (m quickMemory) TryFile(int64, int) (uintptr, int64, bool) { return 0, 0, false }

// served is a running server.
type served struct {
	*Server
	path string
	stop func() error // ends it and gives what Serve returned
}

// serve runs a server until the test ends.
func serve(t testing.TB, device export.Device, config Config) *served {
	t.Helper()
	return serveAt(t, filepath.Join(t.TempDir(), "nbd"), device, config)
}

func serveAt(t testing.TB, path string, device export.Device, config Config) *served {
	t.Helper()
	if config.Log == nil {
		config.Log = quiet()
	}
	s, err := NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, listener, device) }()
	end := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(longest):
			t.Error("the server does not stop")
			return io.ErrNoProgress
		}
	})
	t.Cleanup(func() { end() })
	return &served{s, path, end}
}

func pattern(n, seed int) []byte {
	p := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}
