package faulty

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache/storage"
)

func must[T any](what T, err error) T {
	if err != nil {
		panic(err)
	}
	return what
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func all(f storage.File) []byte { return must(io.ReadAll(io.NewSectionReader(f, 0, 1<<40))) }

func fill(c byte, sectors int) []byte { return bytes.Repeat([]byte{c}, sectors*Sector) }

// TestCutLeavesEachAllowedOutcomeAndNoOther has two sectors of two versions each on top of a durable one, and one
// durable neighbour: 9 outcomes.
func TestCutLeavesEachAllowedOutcomeAndNoOther(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(3000) {
		d := New(seed)
		f := must(d.Create("a"))
		must(f.WriteAt(fill('0', 3), 0))
		ok(t, f.Sync())
		ok(t, d.Sync())
		for _, c := range "12" {
			must(f.WriteAt(fill(byte(c), 2), 0))
		}
		d.Cut()
		if _, err := f.ReadAt(make([]byte, 1), 0); err != ErrPowerLost {
			t.Fatalf("old handle: %v", err)
		}
		f = must(d.Open("a"))
		got := all(f)
		if len(got) != 3*Sector {
			t.Fatalf("seed %d: %d bytes", seed, len(got))
		}
		var digest strings.Builder
		for s := range 3 {
			if !bytes.Equal(got[s*Sector:(s+1)*Sector], fill(got[s*Sector], 1)) {
				t.Fatalf("seed %d: a torn sector", seed)
			}
			digest.WriteByte(got[s*Sector])
		}
		seen[digest.String()]++
	}
	want := []string{"000", "010", "020", "100", "110", "120", "200", "210", "220"}
	if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", seen, want)
	}
}

func TestCutUndoesEachChangeOfNamesByItself(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(2000) {
		d := New(seed)
		put := func(name string, c byte) {
			f := must(d.Create(name))
			must(f.WriteAt([]byte{c}, 0))
			ok(t, f.Sync())
		}
		put("a", 'A')
		put("b", 'B')
		ok(t, d.Sync())
		put("c", 'C')
		ok(t, d.Rename("a", "b"))
		d.Cut()
		var state []string
		for _, name := range must(d.Names()) {
			state = append(state, name+"="+string(all(must(d.Open(name)))))
		}
		seen[strings.Join(state, " ")] = true
	}
	want := []string{"a=A b=B", "a=A b=B c=C", "b=A", "b=A c=C"}
	if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestCutLeavesAnyLengthSinceTheSync(t *testing.T) {
	seen := map[int]bool{}
	for seed := range uint64(500) {
		d := New(seed)
		f := must(d.Create("a"))
		must(f.WriteAt(fill('x', 2), 0))
		ok(t, f.Sync())
		ok(t, d.Sync())
		ok(t, f.Truncate(100))
		ok(t, f.Truncate(2000))
		d.Cut()
		got := all(must(d.Open("a")))
		seen[len(got)] = true
		// Each sector is as before, or as the truncation left it.
		for i, b := range got {
			if b != 0 && b != 'x' || i < 100 && b != 'x' || i >= 2*Sector && b != 0 {
				t.Fatalf("seed %d: byte %d of %d is %d", seed, i, len(got), b)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, []int{100, 2 * Sector, 2000}) {
		t.Fatalf("lengths %v", got)
	}
}

// TestRandomOperationsAgainstAModel checks that what was synced survives, and nothing but what was written appears.
func TestRandomOperationsAgainstAModel(t *testing.T) {
	const sectors = 40
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := New(seed)
		f := must(d.Create("f"))
		ok(t, f.Truncate(sectors*Sector))
		ok(t, f.Sync())
		ok(t, d.Sync())
		may := make([][]byte, sectors) // versions by sector, the last is what reads see
		for i := range may {
			may[i] = []byte{0}
		}
		for step := range 60 {
			from := r.IntN(sectors)
			size := 1 + r.IntN(sectors-from)
			value := byte(1 + r.IntN(255))
			switch r.IntN(8) {
			case 0, 1, 2:
				must(f.WriteAt(fill(value, size), int64(from)*Sector))
			case 3:
				value = 0
				ok(t, f.Punch(int64(from)*Sector, int64(size)*Sector))
			case 4:
				ok(t, f.Sync())
				for i := range may {
					may[i] = may[i][len(may[i])-1:]
				}
				continue
			case 5:
				d.Inject(Fault{Op: Sync, Err: unix.EIO, Times: 1})
				if err := f.Sync(); !errors.Is(err, unix.EIO) {
					t.Fatalf("sync: %v", err)
				}
				// A sync that works does not make durable what the failed one was to; the model keeps all
				// versions until the sector is written and synced again, which is what the next line ends.
				must(f.WriteAt(fill(value, sectors), 0))
				from, size = 0, sectors
			case 6:
				f = must(d.Open("f"))
				continue
			case 7:
				if r.IntN(2) == 0 {
					d.Cut()
				} else {
					d.Kill()
				}
				f = must(d.Open("f"))
				got := all(f)
				for i := range may {
					if !bytes.Contains(may[i], got[i*Sector:i*Sector+1]) {
						t.Fatalf("seed %d step %d: sector %d is %d, may be %v", seed, step, i, got[i*Sector], may[i])
					}
					may[i] = append(may[i], got[i*Sector])
				}
				ok(t, f.Sync())
				// What was left by a kill may have been in doubt: write it again.
				must(f.WriteAt(got, 0))
				ok(t, f.Sync())
				for i := range may {
					may[i] = []byte{got[i*Sector]}
				}
				continue
			}
			for i := from; i < from+size; i++ {
				may[i] = append(may[i], value)
			}
			got := all(f)
			for i := range may {
				if got[i*Sector] != may[i][len(may[i])-1] {
					t.Fatalf("seed %d step %d: read %d of sector %d, wrote %v", seed, step, got[i*Sector], i, may[i])
				}
			}
			if used := d.Used(); used > sectors*Sector {
				t.Fatalf("used %d", used)
			}
		}
	}
}

func TestAFailedSyncIsNotMadeGoodByTheNext(t *testing.T) {
	var kept, lost bool
	for seed := range uint64(200) {
		d := New(seed)
		f := must(d.Create("a"))
		must(f.WriteAt(fill('0', 1), 0))
		ok(t, f.Sync())
		ok(t, d.Sync())
		must(f.WriteAt(fill('1', 1), 0))
		d.Inject(Fault{Op: Sync, Err: unix.EIO, Times: 1})
		if err := f.Sync(); !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		ok(t, f.Sync())
		if got := all(f); got[0] != '1' {
			t.Fatalf("reads give %q", got[0])
		}
		d.Cut()
		switch got := all(must(d.Open("a"))); got[0] {
		case '0':
			lost = true
		case '1':
			kept = true
		}
	}
	if !kept || !lost {
		t.Fatalf("kept %v, lost %v", kept, lost)
	}
}

func TestKillKeepsWhatWasWritten(t *testing.T) {
	d := New(1)
	f := must(d.Create("a"))
	must(f.WriteAt([]byte("hello"), 1000))
	d.Kill()
	if _, err := f.WriteAt(nil, 0); err != ErrPowerLost {
		t.Fatalf("dead handle: %v", err)
	}
	if got := all(must(d.Open("a"))); string(got[1000:]) != "hello" || len(got) != 1005 {
		t.Fatalf("%q", got)
	}
	d.CutAs(Nothing)
	if _, err := d.Open("a"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("after a cut without syncs: %v", err)
	}
}

func TestCrashAfterStopsTheNthChange(t *testing.T) {
	parts := map[int]bool{}
	for seed := range uint64(100) {
		d := New(seed)
		f := must(d.Create("a"))
		d.CrashAfter(3)
		must(f.WriteAt(fill('1', 1), 0))
		must(f.WriteAt(fill('1', 1), 0))
		if d.Crashed().Err() != nil {
			t.Fatal("too early")
		}
		if _, err := f.WriteAt(fill('2', 8), 0); err != ErrPowerLost {
			t.Fatalf("third change: %v", err)
		}
		<-d.Crashed().Done()
		if err := f.Sync(); err != ErrPowerLost {
			t.Fatalf("after the crash: %v", err)
		}
		d.Kill()
		parts[bytes.Count(all(must(d.Open("a"))), []byte{'2'})] = true
	}
	if !parts[0] || !parts[8*Sector] || len(parts) < 10 {
		t.Fatalf("parts of the last write: %v", parts)
	}
}

// TestTornTellsOfHalfASector compares what Torn tells with what the crash left of a write over four sectors.
func TestTornTellsOfHalfASector(t *testing.T) {
	seen := map[bool]int{}
	for seed := range uint64(300) {
		d := New(seed)
		f := must(d.Create("a"))
		before := fill('1', 4)
		must(f.WriteAt(before, 0))
		whole := bytes.Clone(before)
		// Where the new bytes are those from before, it makes no difference how far the write came.
		offset, length := int(seed*7%900), 1+int(seed*13%1000)
		for i := offset; i < offset+length; i++ {
			if i%Sector < 300 {
				whole[i] = '2'
			}
		}
		d.CrashAfter(1)
		f.WriteAt(whole[offset:offset+length], int64(offset))
		d.Kill()
		left := all(must(d.Open("a")))
		torn := false
		for at := 0; at < len(left); at += Sector {
			s := left[at : at+Sector]
			torn = torn || !bytes.Equal(s, before[at:at+Sector]) && !bytes.Equal(s, whole[at:at+Sector])
		}
		seen[torn]++
		if d.Torn("a") != torn || d.Torn("a") || d.Torn("b") {
			t.Fatalf("seed %d: write of %d+%d, torn %v is not told, or again", seed, offset, length, torn)
		}
	}
	if seen[true] < 20 || seen[false] < 20 {
		t.Fatal(seen)
	}
}

func TestOutOfSpace(t *testing.T) {
	d := New(1)
	d.SetCapacity(4 * Sector)
	f := must(d.Create("a"))
	if n, err := f.WriteAt(fill('x', 6), 100); !fault.Is(err, fault.OutOfSpace) || n != 4*Sector-100 {
		t.Fatalf("%d, %v", n, err)
	}
	must(f.WriteAt(fill('y', 1), Sector))
	ok(t, f.Punch(0, 2*Sector))
	must(f.WriteAt(fill('y', 1), 1<<40))
	if d.Used() != 3*Sector {
		t.Fatalf("used %d", d.Used())
	}
	ok(t, d.Remove("a"))
	if d.Used() != 0 {
		t.Fatalf("used %d after removal", d.Used())
	}
}

func TestFaultsAndStalls(t *testing.T) {
	d := New(1)
	f := must(d.Create("a"))
	must(f.WriteAt(fill('x', 8), 0))
	d.Inject(Fault{Op: Read, Name: "a", Err: unix.EIO, Skip: 1, Times: 1})
	for i, want := range []error{nil, unix.EIO, nil} {
		n, err := f.ReadAt(make([]byte, 4096), 0)
		if !errors.Is(err, want) || (err == nil) != (n == 4096) && want == nil {
			t.Fatalf("read %d: %d, %v", i, n, err)
		}
	}
	s := d.Stall(Write, "")
	done := make(chan error, 2)
	go func() { _, err := f.WriteAt([]byte("late"), 0); done <- err }()
	<-s.Reached()
	if got := all(f); got[0] != 'x' {
		t.Fatal("the write did not wait")
	}
	s.Release()
	ok(t, <-done)
	d.Stall(Sync, "")
	go func() { done <- f.Sync() }()
	d.Crash()
	if err := <-done; err != ErrPowerLost {
		t.Fatalf("stalled when the machine crashed: %v", err)
	}
}

func TestSparse(t *testing.T) {
	d := New(1)
	f := must(d.Create("a"))
	ok(t, f.Truncate(1<<40))
	for i := range int64(1000) {
		must(f.WriteAt([]byte{1}, i<<30))
	}
	ok(t, f.Punch(1<<20, 1<<40)) // sector by sector, this would not come to its end
	ok(t, f.Sync())
	d.Cut()
	if d.Used() != 0 && d.Used() != Sector {
		t.Fatalf("used %d", d.Used())
	}
}

func TestTheSameSeedDoesTheSame(t *testing.T) {
	run := func() string {
		d := New(7)
		files := map[string]storage.File{}
		for _, name := range []string{"a", "b", "c"} {
			files[name] = must(d.Create(name))
		}
		ok(t, d.Sync())
		// The order among goroutines does not matter to what a cut chooses.
		var wait sync.WaitGroup
		for name, f := range files {
			wait.Go(func() {
				for i := range int64(20) {
					if _, err := f.WriteAt(fill(name[0], 2), i*Sector); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wait.Wait()
		d.CutAs(Half)
		var b strings.Builder
		for _, name := range must(d.Names()) {
			fmt.Fprintf(&b, "%s %x\n", name, all(must(d.Open(name))))
		}
		return b.String()
	}
	want := run()
	for range 20 {
		if run() != want {
			t.Fatal("differs")
		}
	}
}
