package proof

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/cache/volume"
)

// TestCrashBeforeItIsKnownWhatACutLeft: a power cut takes a write that BACK had acknowledged and no flush had made
// durable, the volume is opened in another mode, and the host crashes again at each change of that opening and of the
// first reads. The source need not have the write, neither then nor later.
func TestCrashBeforeItIsKnownWhatACutLeft(t *testing.T) {
	for _, mode := range []cache.Mode{cache.Around, cache.Through, cache.Back, cache.Offline} {
		t.Run(string(mode), func(t *testing.T) {
			inReads, ended := 0, false
			for n := int64(1); !ended; n++ {
				synctest.Test(t, func(t *testing.T) {
					s := afterALostWrite(t)
					s.disk.CrashAfter(n)
					ended = s.openAs(mode, true)
					if s.volume != nil && s.down() {
						inReads++
					}
					if s.goDown(); n%2 == 0 {
						s.killed()
					} else {
						s.cut(faulty.Nothing)
					}
					if s.openAs(mode, true) {
						s.goDown()
					}
					s.shut()
					if s.failed() || !s.pinned {
						t.Fatalf("crash at change %d: %s; found %v", n, s.what, s.pinned)
					}
				})
			}
			if inReads == 0 {
				t.Fatal("no crash after the volume was open")
			}
		})
	}
}

// afterALostWrite is a host that was cut off after a write to BACK that is nowhere now.
func afterALostWrite(t *testing.T) *volumeScenario {
	t.Helper()
	s := &volumeScenario{mode: cache.Back, pinned: true, size: 128 << 10, disk: faulty.New(1), runner: &runner{
		tools: NewTools(), subject: Subject{Volume: volume.Open}, seed: 1, rng: rand.New(rand.NewPCG(1, 1)),
	}}
	image := s.image(s.size)
	var err error
	if s.source, err = faulty.NewSource(1, s.size); err != nil {
		t.Fatal(err)
	}
	if err := s.source.Fill(image, 0); err != nil {
		t.Fatal(err)
	}
	s.model = newModel(image, s.tools.same)
	if !s.open(false) {
		t.Fatal(s.what)
	}
	s.write(8192, 4096, false, false)
	lost := s.model.changes[len(s.model.changes)-1]
	s.goDown()
	s.cut(faulty.Nothing)
	if !lost.ok || lost.lost == never || s.failed() {
		t.Fatalf("%v, %q", lost, s.what)
	}
	return s
}

func TestAModelAfterACut(t *testing.T) {
	tools := NewTools()
	image := make([]byte, 4*sector)
	// begin is a disk with a durable write to sector 0 and one to sector 1 that a cut may have taken.
	begin := func() (m *Model, old, new []byte) {
		m = newModel(image, tools.same)
		durable := m.begin(&change{length: sector})
		m.end(durable, true, true)
		m.flushed(m.tick())
		lost := m.begin(&change{offset: sector, length: sector})
		m.end(lost, true, false)
		old, new = make([]byte, m.size), make([]byte, m.size)
		durable.fill(tools.same, old[:sector], 0)
		copy(new, old)
		lost.fill(tools.same, new[sector:2*sector], sector)
		return m, old, new
	}
	check := func(t *testing.T, what string, err error, right bool) {
		t.Helper()
		if (err == nil) != right {
			t.Errorf("%s: %v", what, err)
		}
	}
	now := func(m *Model) rule { return m.reading(m.tick()) }

	m, old, new := begin()
	check(t, "without a cut it is there", m.check(old, 0, now(m)), false)
	m.cut()
	check(t, "it may be gone", m.check(old, 0, now(m)), true)
	check(t, "it may be there", m.check(new, 0, now(m)), true)
	check(t, "what was durable is there", m.check(image, 0, now(m)), false)
	m.flushed(m.tick())
	check(t, "a later flush does not promise it", m.check(old, 0, m.kept()), true)
	check(t, "nor that the source has it", m.ordered(old), true)

	later := m.begin(&change{offset: 2 * sector, length: sector})
	m.end(later, true, false)
	check(t, "a later write is there", m.check(old, 0, now(m)), false)
	both := append([]byte(nil), old...)
	later.fill(tools.same, both[2*sector:3*sector], 2*sector)
	check(t, "without the lost one", m.check(both, 0, now(m)), true)
	m.flushed(m.tick())
	check(t, "and made durable", m.check(old, 0, m.kept()), false)

	for _, left := range [][]byte{old, new} {
		m, _, _ = begin()
		m.cut()
		m.found(left, false)
		check(t, "it stays gone", m.check(old, 0, now(m)), &left[0] == &old[0])
		check(t, "it stays there", m.check(new, 0, now(m)), &left[0] == &new[0])
		m.flushed(m.tick())
		check(t, "it stays gone durably", m.check(old, 0, m.kept()), &left[0] == &old[0])
		check(t, "it stays there durably", m.check(new, 0, m.kept()), &left[0] == &new[0])
	}
}
