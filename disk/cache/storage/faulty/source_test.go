package faulty

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

func image(t testing.TB, seed uint64) (*Source, *Disk) {
	t.Helper()
	s := must(NewSource(seed, 64<<10))
	ok(t, s.Fill(fill('0', 128), 0))
	return s, New(seed)
}

func peek(s *Source, durable bool) []byte {
	p := make([]byte, 64<<10)
	if durable {
		s.PeekDurable(p, 0)
	} else {
		s.Peek(p, 0)
	}
	return p
}

func TestSourceIsDurableAfterSync(t *testing.T) {
	var lost bool
	for seed := range uint64(50) {
		s, host := image(t, seed)
		h := s.Open(host)
		must(h.WriteAt(fill('1', 4), 0))
		ok(t, h.Sync())
		must(h.WriteAt(fill('2', 4), 4*Sector))
		ok(t, h.Discard(8*Sector, Sector))
		if p := peek(s, true); !bytes.Equal(p[:4*Sector], fill('1', 4)) || p[4*Sector] != '0' || p[8*Sector] != '0' {
			t.Fatal("durable is not what was synced")
		}
		if p := peek(s, false); !bytes.Equal(p[4*Sector:8*Sector], fill('2', 4)) || p[8*Sector] != 0 {
			t.Fatal("what was written is not read")
		}
		host.Cut() // has nothing to do with the repository
		if p := peek(s, false); !bytes.Equal(p[4*Sector:8*Sector], fill('2', 4)) {
			t.Fatal("the host's power cut took the repository's")
		}
		if _, err := h.WriteAt([]byte{1}, 0); err != ErrPowerLost {
			t.Fatalf("handle of a dead host: %v", err)
		}
		s.Cut()
		p := peek(s, false)
		if !bytes.Equal(p[:4*Sector], fill('1', 4)) {
			t.Fatal("what was synced is lost")
		}
		lost = lost || p[4*Sector] == '0'
	}
	if !lost {
		t.Fatal("nothing was ever lost")
	}
}

func TestSourceTellsOfItsPowerCutOnce(t *testing.T) {
	s, host := image(t, 1)
	h, idle := s.Open(host), s.Open(host)
	must(h.WriteAt(fill('1', 4), 0))
	s.CutAs(Nothing)
	must(h.WriteAt(fill('2', 1), 4*Sector))
	if err := h.Sync(); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("sync after the loss: %v", err)
	}
	ok(t, h.Sync())
	ok(t, idle.Sync())
}

func TestSourceUnreachable(t *testing.T) {
	s, host := image(t, 1)
	h := s.Open(host)
	s.Unreachable(true)
	var done, not bool
	for i := range int64(64) {
		if _, err := h.WriteAt(fill('1', 1), i*Sector); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("write: %v", err)
		}
		c := peek(s, false)[i*Sector]
		done, not = done || c == '1', not || c == '0'
	}
	if !done || !not {
		t.Fatalf("writes that failed: some done %v, some not %v", done, not)
	}
	if _, err := h.ReadAt(make([]byte, 10), 0); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("read: %v", err)
	}
	if err := h.Sync(); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("sync: %v", err)
	}
	if err := h.Undrained(t.Context(), true); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("mark: %v", err)
	}
	if _, _, err := s.Opener(host)(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("open: %v", err)
	}
	s.Unreachable(false)
	ok(t, h.Undrained(t.Context(), true))
	if !s.Undrained() {
		t.Fatal("no mark")
	}
	s.Inject(Fault{Op: Sync, Err: unix.EIO, Times: 1})
	if err := h.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatalf("injected: %v", err)
	}
}

func TestSourceTakenByAnother(t *testing.T) {
	s, host := image(t, 1)
	h := s.Open(host)
	ok(t, h.Undrained(t.Context(), true))
	s.Take()
	must(h.WriteAt([]byte{1}, 0))
	if s.Strays() != 0 {
		t.Fatal("blamed for what it could not know")
	}
	if err := h.Undrained(t.Context(), false); !fault.Is(err, fault.Busy) {
		t.Fatalf("mark of another: %v", err)
	}
	if err := h.Undrained(t.Context(), true); !fault.Is(err, fault.Busy) || !s.Undrained() || s.Strays() != 0 {
		t.Fatalf("changed the mark of another: %v", err)
	}
	must(h.WriteAt([]byte{1}, 0))
	if s.Strays() != 1 {
		t.Fatalf("%d strays", s.Strays())
	}
	ok(t, s.Open(host).Undrained(t.Context(), false))
	if s.Undrained() {
		t.Fatal("the new owner cannot clear the mark")
	}
}

func TestSourceGrowsAndNeverShrinks(t *testing.T) {
	s, host := image(t, 1)
	h := s.Open(host)
	if err := h.Truncate(10); !fault.Is(err, fault.Invalid) {
		t.Fatalf("shorter: %v", err)
	}
	ok(t, h.Truncate(1<<40))
	if h.Size() != 1<<40 {
		t.Fatalf("size %d", h.Size())
	}
	if n, err := h.ReadAt(make([]byte, 100), 1<<40-50); n != 50 || err != io.EOF {
		t.Fatalf("at the end: %d, %v", n, err)
	}
}

func TestSourceLies(t *testing.T) {
	s, host := image(t, 1)
	r, closer, err := s.Opener(host)(t.Context())
	ok(t, err)
	defer closer.Close()
	old := bytes.NewReader(fill('9', 128))
	for name, c := range map[string]struct {
		lie    Lie
		caught func(p []byte, n int, err error) bool
	}{
		"wrong byte": {Lie{WrongByte: 1}, func(p []byte, n int, err error) bool {
			return n == 4096 && err == nil && bytes.Count(p, []byte{'0'}) == 4095
		}},
		"short":  {Lie{Short: 1}, func(p []byte, n int, err error) bool { return n < 4096 && err == io.EOF }},
		"stale":  {Lie{Stale: 1}, func(p []byte, n int, err error) bool { return err == nil && bytes.Equal(p, fill('9', 8)) }},
		"length": {Lie{Less: 62 << 10}, func(p []byte, n int, err error) bool { return n == 2048 && err == io.EOF }},
		"truth":  {Lie{}, func(p []byte, n int, err error) bool { return err == nil && bytes.Equal(p, fill('0', 8)) }},
	} {
		s.Lie(c.lie, old)
		p := make([]byte, 4096)
		if n, err := r.ReadAt(p, 0); !c.caught(p, n, err) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

func TestSourceStallEndsWithTheHostAndLatencyIsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, host := image(t, 1)
		h := s.Open(host)
		s.Slow(Write, 3*time.Second)
		started := time.Now()
		must(h.WriteAt([]byte{1}, 0))
		if d := time.Since(started); d != 3*time.Second {
			t.Fatalf("took %v", d)
		}
		stall := s.Stall(Read)
		done := make(chan error)
		go func() { _, err := h.ReadAt(make([]byte, 1), 0); done <- err }()
		<-stall.Reached()
		host.Crash()
		if err := <-done; err != ErrPowerLost {
			t.Fatalf("read stalled when the host crashed: %v", err)
		}
	})
}

func TestOpenerEndsWithItsContext(t *testing.T) {
	s, host := image(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Opener(host)(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("open: %v", err)
	}
}

func TestChangesOfTheSourceAreCrashPointsOfTheHost(t *testing.T) {
	s, host := image(t, 1)
	h := s.Open(host)
	host.CrashAfter(2)
	must(h.WriteAt([]byte{1}, 0))
	if err := h.Sync(); err != ErrPowerLost {
		t.Fatalf("second change: %v", err)
	}
}
