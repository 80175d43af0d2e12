package nbd

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"hayloft/disk/export"
)

// runtimes is what the runtime itself may allocate while a connection is busy, however many hits there are: 7 objects
// for each thread it starts, and one for each goroutine that waits for another's channel while the free list of its
// processor is empty (up to 128 a processor, as goroutines move between them).
const (
	processors = 2
	runtimes   = 100 + 128*processors
)

// TestHitsAllocateNothing counts all that is allocated in this process during 10,000 hits of each kind, far fewer long ones;
// the client's side of it allocates nothing either.
func TestHitsAllocateNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := NewFile(f, false)
	if err != nil {
		t.Fatal(err)
	}
	const long = 2 * runtimes
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
	devices := map[string]export.Device{"memory": quickMemory{memory: newMemory(2 << 20), missFrom: 2 << 20}, "file": file}
	for name, device := range devices {
		for _, tt := range []struct {
			name    string
			command uint16
			length  uint32
			n       int
		}{{"short reads", cmdRead, 4096, 10_000}, {"long reads", cmdRead, 1 << 20, long}, {"short writes", cmdWrite, 4096, 10_000}, {"long writes", cmdWrite, 1 << 20, long}} {
			t.Run(name+", "+tt.name, func(t *testing.T) {
				s := serve(t, device, Config{})
				r := enter(t, s.path, true)
				message := make([]byte, requestSize)
				if tt.command == cmdWrite {
					message = make([]byte, requestSize+tt.length)
				}
				request{command: tt.command, cookie: 1, length: tt.length}.put(message)
				answer := make([]byte, simpleSize)
				if tt.command == cmdRead {
					answer = make([]byte, answerSize(r, message, int(tt.length)))
				}
				ask := func() {
					if _, err := r.Write(message); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(r, answer); err != nil {
						t.Fatal(err)
					}
				}
				for range 100 {
					ask()
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range tt.n {
					ask()
				}
				runtime.ReadMemStats(&after)
				// One allocation a request would be tt.n, one for each piece of a long one 8 times that.
				if n := after.Mallocs - before.Mallocs; n > runtimes {
					t.Errorf("%d allocations, %d bytes in %d hits", n, after.TotalAlloc-before.TotalAlloc, tt.n)
				}
			})
		}
	}
}

// answerSize asks once and gives the length of the reply with its chunks' heads.
func answerSize(r *raw, message []byte, length int) int {
	r.t.Helper()
	if _, err := r.Write(message); err != nil {
		r.t.Fatal(err)
	}
	_, chunks := r.content(1, 0, length)
	return chunks*dataSize + length
}
