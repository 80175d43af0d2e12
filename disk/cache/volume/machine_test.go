package volume

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
)

const sector = 512

// model is the flat disk that a volume has to be like.
type model struct {
	now []byte
	// since is what each sector held since the last flush, for modes that promise no more than that after a power cut.
	since map[int][][]byte
}

func newModel(content []byte) *model {
	return &model{now: bytes.Clone(content), since: map[int][][]byte{}}
}

func (m *model) write(p []byte, offset int) {
	first, last := offset/sector, (offset+len(p)+sector-1)/sector
	for s := first; s < last; s++ {
		m.since[s] = append(m.since[s], bytes.Clone(m.sector(s)))
	}
	copy(m.now[offset:], p)
}

func (m *model) sector(s int) []byte { return m.now[s*sector : min((s+1)*sector, len(m.now))] }

func (m *model) flushed() { clear(m.since) }

// cut takes over what a cut left, and reports a sector that cannot be.
func (m *model) cut(left []byte) error {
	for s := range (len(m.now) + sector - 1) / sector {
		got := left[s*sector : min((s+1)*sector, len(left))]
		if !bytes.Equal(got, m.sector(s)) && !slices.ContainsFunc(m.since[s], func(b []byte) bool { return bytes.Equal(b, got) }) {
			return fmt.Errorf("sector %d holds what it did not since the last flush", s)
		}
	}
	copy(m.now, left)
	m.flushed()
	return nil
}

// bench is a host with a volume on it.
type bench struct {
	host     *faulty.Disk
	source   *faulty.Source
	config   cache.VolumeConfig
	volume   cache.Volume
	boot     int
	fatalf   func(format string, args ...any)
	original []byte
}

// holey is a source that knows its holes, in pieces of 4 KiB.
type holey struct {
	cache.Source
	image *faulty.Source
}

func (h holey) NextData(offset int64) (start, end int64, err error) {
	const piece = 4096
	size := h.Size()
	data := func(at int64) bool {
		p := make([]byte, min(piece, size-at))
		h.image.Peek(p, at)
		return !isZero(p)
	}
	for start = offset; start < size && !data(start/piece*piece); {
		start = (start/piece + 1) * piece
	}
	if start >= size {
		return 0, 0, io.EOF
	}
	for end = start; end < size && data(end/piece*piece); {
		end = min((end/piece+1)*piece, size)
	}
	return start, end, nil
}

func newBench(fatalf func(string, ...any), seed uint64, size, sourceSize int64, mode cache.Mode, capacity int64) *bench {
	b := &bench{host: faulty.New(seed), boot: 1, fatalf: fatalf}
	var err error
	if b.source, err = faulty.NewSource(seed, sourceSize); err != nil {
		fatalf("%v", err)
	}
	b.original = make([]byte, size)
	content := pattern(int(sourceSize), byte(seed))
	clear(content[min(len(content), 3*chunkSize):min(len(content), 5*chunkSize)])
	copy(b.original, content)
	if err := b.source.Fill(content, 0); err != nil {
		fatalf("%v", err)
	}
	b.config = cache.VolumeConfig{Name: "machine 1 disk 0", Size: size, Mode: mode, Capacity: capacity, Patience: 10 * time.Second}
	return b
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed, 1}).Read(p)
	return p
}

func (b *bench) open() {
	c := b.config
	c.Dir, c.Source, c.Boot = b.host.Dir(), holey{b.source.Open(b.host), b.source}, fmt.Sprint("boot ", b.boot)
	v, err := Open(context.Background(), c)
	if err != nil {
		b.fatalf("open: %v", err)
	}
	b.volume = v
	if c.Mode == cache.Offline {
		b.check("load", v.Load(context.Background(), 0, nil))
	}
}

func (b *bench) close() {
	if b.volume != nil {
		b.check("close", b.volume.Close())
	}
	b.volume = nil
}

// kill ends the process, cut the machine.
func (b *bench) kill() { b.die(func() { b.host.Kill() }) }
func (b *bench) cut()  { b.die(func() { b.host.Cut() }); b.boot++ }

func (b *bench) die(how func()) {
	b.host.Crash()
	b.volume.Close() // fails: it only ends the goroutines
	b.volume = nil
	how()
}

func (b *bench) check(what string, err error) {
	if err != nil {
		b.fatalf("%s: %v", what, err)
	}
}

// read reads as an export does: the quick way, and when it is not done the other.
func (b *bench) read(offset, length int) []byte {
	p := make([]byte, length)
	b.check("read", b.volume.ReadAt(context.Background(), p, int64(offset)))
	return p
}

func (b *bench) write(p []byte, offset int, fua bool) {
	if q := b.volume.(export.Quick); !fua {
		if done, err := q.TryWriteAt(p, int64(offset)); done {
			b.check("quick write", err)
			return
		}
	}
	b.check("write", b.volume.WriteAt(context.Background(), p, int64(offset), fua))
}

// inSource compares the image in the repository.
func (b *bench) inSource(want []byte) {
	got := make([]byte, len(want))
	b.source.Peek(got, 0)
	if i := differ(got, want); i >= 0 {
		b.fatalf("the source differs at byte %d", i)
	}
}

// differ is the first byte that differs, or -1.
func differ(got, want []byte) int {
	if bytes.Equal(got, want) {
		return -1
	}
	for i := range want {
		if got[i] != want[i] {
			return i
		}
	}
	return -1
}

var allModes = []cache.Mode{cache.Around, cache.Through, cache.Back, cache.Offline}

// durableInSource: acknowledged is as good as it gets, whatever happens to the host.
func durableInSource(m cache.Mode) bool { return m == cache.Around || m == cache.Through }

func TestVolumeIsLikeAFlatDisk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 18*chunkSize + 1000
		sourceSize := rapid.SampledFrom([]int{size, 9*chunkSize + 77}).Draw(t, "source size")
		mode := rapid.SampledFrom(allModes).Draw(t, "mode")
		b := newBench(t.Fatalf, rapid.Uint64().Draw(t, "seed"), int64(size), int64(sourceSize), mode, 0)
		limited := rapid.Bool().Draw(t, "limited")
		setMode := func(m cache.Mode) {
			b.config.Mode, b.config.Capacity = m, 0
			if limited && m != cache.Offline {
				b.config.Capacity = 3 * chunkSize
				if m == cache.Back {
					b.config.Capacity += minLog
				}
			}
		}
		setMode(mode)
		b.open()
		defer func() {
			if b.volume != nil {
				b.volume.Close()
			}
		}()
		m := newModel(b.original)
		whole := func() {
			if i := differ(b.read(0, size), m.now); i >= 0 {
				t.Fatalf("reads differ at byte %d", i)
			}
		}
		rangeOf := func(t *rapid.T, longest int) (offset, length int) {
			offset = rapid.IntRange(0, size-1).Draw(t, "offset")
			if rapid.Bool().Draw(t, "aligned") {
				offset = offset / chunkSize * chunkSize
			}
			return offset, rapid.IntRange(1, min(longest, size-offset)).Draw(t, "length")
		}
		seed := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				offset, length := rangeOf(t, 3*chunkSize)
				seed++
				p := pattern(length, seed)
				fua := rapid.IntRange(0, 4).Draw(t, "fua") == 0
				b.write(p, offset, fua)
				m.write(p, offset)
				if fua {
					m.flushed()
				}
			},
			"zero": func(t *rapid.T) {
				offset, length := rangeOf(t, 12*chunkSize)
				z := export.ZeroFlags{Trim: rapid.Bool().Draw(t, "trim"), NoHole: rapid.Bool().Draw(t, "no hole")}
				b.check("zero", b.volume.Zero(context.Background(), int64(offset), int64(length), z))
				m.write(make([]byte, length), offset)
			},
			"read": func(t *rapid.T) {
				offset, length := rangeOf(t, 5*chunkSize)
				if i := differ(b.read(offset, length), m.now[offset:offset+length]); i >= 0 {
					t.Fatalf("reads differ at byte %d", offset+i)
				}
			},
			"flush": func(t *rapid.T) {
				b.check("flush", b.volume.Flush(context.Background()))
				m.flushed()
			},
			"settle": func(t *rapid.T) {
				b.check("settle", b.volume.Settle(context.Background(), nil))
				m.flushed()
				b.inSource(m.now)
				if b.source.Undrained() {
					t.Fatal("the mark is still there")
				}
			},
			"extents": func(t *rapid.T) {
				offset, length := rangeOf(t, size)
				at := int64(offset)
				b.check("extents", b.volume.Extents(context.Background(), at, int64(length), func(x export.Extent) bool {
					if x.Offset != at || x.Length <= 0 {
						t.Fatalf("extent %+v at %d", x, at)
					}
					at += x.Length
					if x.Zero && !isZero(m.now[x.Offset:at]) {
						t.Fatalf("extent %+v is not zero", x)
					}
					return true
				}))
				if at != int64(offset+length) {
					t.Fatalf("extents end at %d instead of %d", at, offset+length)
				}
			},
			"prefetch": func(t *rapid.T) {
				offset, length := rangeOf(t, size)
				b.check("prefetch", b.volume.Prefetch(context.Background(), int64(offset), int64(length)))
			},
			"reopen": func(t *rapid.T) {
				b.close()
				if rapid.Bool().Draw(t, "reboot") {
					b.boot++
				}
				b.open()
				whole()
			},
			"kill": func(t *rapid.T) {
				b.kill()
				b.open()
				whole()
			},
			"cut": func(t *rapid.T) {
				b.cut()
				b.open()
				if durableInSource(b.config.Mode) {
					whole()
				} else if err := m.cut(b.read(0, size)); err != nil {
					t.Fatal(err)
				}
			},
			"mode": func(t *rapid.T) {
				b.close()
				setMode(rapid.SampledFrom(allModes).Draw(t, "mode"))
				b.open()
				whole()
			},
			"": func(t *rapid.T) {
				if s := b.volume.Status(); limited && b.config.Capacity > 0 && s.Cached > 3*chunkSize {
					t.Fatalf("%d bytes are cached", s.Cached)
				}
			},
		})
		b.check("settle", b.volume.Settle(context.Background(), nil))
		b.inSource(m.now)
		whole()
		b.check("discard", b.volume.Discard(context.Background()))
		if names, err := b.host.Dir().Names(); err != nil || len(names) > 0 {
			t.Fatalf("left behind: %v, %v", names, err)
		}
	})
}
