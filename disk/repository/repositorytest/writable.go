package repositorytest

import (
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

var (
	one   = repository.Owner{Host: "host-one", Machine: 1}
	other = repository.Owner{Host: "host-two", Machine: 2}
)

// writable is the suite of repository.Writable, for drivers that have it.
func writable(t *testing.T, open func(t *testing.T) repository.Repository) {
	if _, ok := open(t).(repository.Writable); !ok {
		return
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, repository.Repository, repository.Writable)
	}{
		{"target reads and writes", target},
		{"generations", generations},
		{"undrained keeps others out", undrained},
		{"break", breakOwner},
		{"a target taken away", takenAway},
		{"one of many takes it", race},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := open(t)
			create(t, r, "d/p", strings.Repeat("x", 10_000))
			test.run(t, r, r.(repository.Writable))
		})
	}
}

// own takes the object for the user who runs the tests.
func own(w repository.Writable, t *testing.T, o repository.Owner) error {
	_, err := w.Own(t.Context(), "d/p", o, os.Getuid(), os.Getgid())
	return err
}

func mustOwn(t *testing.T, w repository.Writable, o repository.Owner) repository.Mark {
	t.Helper()
	if err := own(w, t, o); err != nil {
		t.Fatal(err)
	}
	m, err := w.Marked(t.Context(), "d/p")
	if err != nil || m.Owner != o || m.Generation == 0 || m.Undrained {
		t.Fatalf("mark %+v, %v", m, err)
	}
	return m
}

func target(t *testing.T, r repository.Repository, w repository.Writable) {
	_, _, err := w.OpenTarget(t.Context(), "d/p", one)
	class(t, "open what nobody owns", err, fault.WrongState)
	_, _, err = w.OpenTarget(t.Context(), "d/none", one)
	class(t, "open what is not there", err, fault.NotFound)
	_, _, err = w.OpenTarget(t.Context(), "../p", one)
	class(t, "open a bad name", err, fault.Invalid)
	mark := mustOwn(t, w, one)
	s, m, err := w.OpenTarget(t.Context(), "d/p", one)
	if err != nil || m != mark || s.Size() != 10_000 {
		t.Fatal(s, m, err)
	}
	defer s.Close()
	_, _, err = w.OpenTarget(t.Context(), "d/p", other)
	class(t, "open another's", err, fault.Busy)

	if n, err := s.WriteAt([]byte("hello"), 9_998); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Truncate(300_000); err != nil || s.Size() != 300_000 {
		t.Fatal(s.Size(), err)
	}
	class(t, "cut", s.Truncate(10), fault.Invalid)
	if _, err := s.WriteAt([]byte("end"), 299_997); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(100, 9_000); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(299_999, 1<<30); err != nil || s.Size() != 300_000 {
		t.Fatal(s.Size(), err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	want := []byte(strings.Repeat("x", 100) + strings.Repeat("\x00", 9_000) + strings.Repeat("x", 898) + "hello")
	want = append(want, make([]byte, 300_000-len(want))...)
	copy(want[299_997:], "en")
	b, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil || string(b) != string(want) {
		t.Errorf("the target reads differently, %v", err)
	}
	if n, err := s.ReadAt(make([]byte, 9), 299_998); n != 2 || err != io.EOF {
		t.Errorf("beyond the end: %d %v", n, err)
	}
	if read(t, r, "d/p") != string(want) {
		t.Error("a source reads differently")
	}
	if x, ok := s.(repository.Extents); ok {
		if _, _, err := x.NextData(300_000); err != io.EOF {
			t.Errorf("data at the end: %v", err)
		}
	}
}

func generations(t *testing.T, _ repository.Repository, w repository.Writable) {
	_, err := w.Marked(t.Context(), "d/p")
	class(t, "mark of what nobody owns", err, fault.NotFound)
	first := mustOwn(t, w, one)
	if again := mustOwn(t, w, one); again != first {
		t.Errorf("owning again made %+v of %+v", again, first)
	}
	class(t, "own another's", own(w, t, other), fault.Busy)
	if err := w.Disown(t.Context(), "d/p", other); err != nil {
		t.Error(err)
	}
	if err := w.Disown(t.Context(), "d/p", one); err != nil {
		t.Fatal(err)
	}
	second := mustOwn(t, w, one)
	if second.Generation <= first.Generation {
		t.Errorf("generation %d after %d", second.Generation, first.Generation)
	}
	class(t, "mark with a generation that is over", w.SetUndrained(t.Context(), "d/p", one, first.Generation, true), fault.Busy)
	if m, err := w.Marked(t.Context(), "d/p"); err != nil || m != second {
		t.Error(m, err)
	}
}

func undrained(t *testing.T, r repository.Repository, w repository.Writable) {
	class(t, "mark what nobody owns", w.SetUndrained(t.Context(), "d/p", one, 1, true), fault.Busy)
	m := mustOwn(t, w, one)
	class(t, "mark another's", w.SetUndrained(t.Context(), "d/p", other, m.Generation, true), fault.Busy)
	for range 2 {
		if err := w.SetUndrained(t.Context(), "d/p", one, m.Generation, true); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.Marked(t.Context(), "d/p"); err != nil || !got.Undrained || got.Generation != m.Generation {
		t.Error(got, err)
	}
	err := own(w, t, other)
	class(t, "own undrained", err, fault.Busy)
	for _, word := range []string{"host-one", "machine 1", "--accept-stale"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
	class(t, "disown undrained", w.Disown(t.Context(), "d/p", one), fault.WrongState)
	class(t, "delete undrained", r.Delete(t.Context(), "d/p"), fault.Busy)
	if err := own(w, t, one); err != nil {
		t.Errorf("its owner comes back: %v", err)
	}
	if err := w.SetUndrained(t.Context(), "d/p", one, m.Generation, false); err != nil {
		t.Fatal(err)
	}
	if err := w.Disown(t.Context(), "d/p", one); err != nil {
		t.Fatal(err)
	}
	mustOwn(t, w, other)
}

func breakOwner(t *testing.T, _ repository.Repository, w repository.Writable) {
	if err := w.Break(t.Context(), "d/p", false); err != nil {
		t.Errorf("nobody's: %v", err)
	}
	m := mustOwn(t, w, one)
	if err := w.Break(t.Context(), "d/p", false); err != nil {
		t.Fatal(err)
	}
	class(t, "mark after break", w.SetUndrained(t.Context(), "d/p", one, m.Generation, true), fault.Busy)
	m = mustOwn(t, w, one)
	if err := w.SetUndrained(t.Context(), "d/p", one, m.Generation, true); err != nil {
		t.Fatal(err)
	}
	class(t, "break undrained", w.Break(t.Context(), "d/p", false), fault.Busy)
	if err := w.Break(t.Context(), "d/p", true); err != nil {
		t.Fatal(err)
	}
	n := mustOwn(t, w, other)
	if n.Generation <= m.Generation {
		t.Errorf("generation %d after %d", n.Generation, m.Generation)
	}
	class(t, "the former owner marks", w.SetUndrained(t.Context(), "d/p", one, m.Generation, false), fault.Busy)
}

// takenAway: a host whose image went to another while it was away finds out before long.
func takenAway(t *testing.T, _ repository.Repository, w repository.Writable) {
	mustOwn(t, w, one)
	s, _, err := w.OpenTarget(t.Context(), "d/p", one)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := w.Break(t.Context(), "d/p", true); err != nil {
		t.Fatal(err)
	}
	mustOwn(t, w, other)
	for {
		if _, err = s.WriteAt([]byte("late"), 0); err != nil { // ends with the test's limit
			break
		}
	}
	class(t, "write to what was taken", err, fault.Busy)
	class(t, "sync what was taken", s.Sync(), fault.Busy)
}

func race(t *testing.T, _ repository.Repository, w repository.Writable) {
	var won sync.Map
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			switch err := own(w, t, repository.Owner{Host: "h", Machine: i}); {
			case err == nil:
				won.Store(i, true)
			case !fault.Is(err, fault.Busy):
				t.Error(err)
			}
		})
	}
	group.Wait()
	winners := 0
	won.Range(func(machine, _ any) bool {
		winners++
		if m, err := w.Marked(t.Context(), "d/p"); err != nil || m.Machine != machine {
			t.Errorf("machine %d won, the mark is %+v, %v", machine, m, err)
		}
		return true
	})
	if winners != 1 {
		t.Errorf("%d took it", winners)
	}
}
