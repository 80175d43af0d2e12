package iscsi

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
)

// stored is what the volume of an object has, as long as the object is.
func stored(t *testing.T, s *storage, r *Repository, name string) string {
	t.Helper()
	v, err := r.lookup(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.Path(v.Name))
	if err != nil || int64(len(b)) < v.size {
		t.Fatal(len(b), v.size, err)
	}
	return string(b[:v.size])
}

func parent(t *testing.T, r *Repository, name, want string) {
	t.Helper()
	if got, err := r.Parent(t.Context(), name); err != nil || got != want {
		t.Errorf("the parent of %s is %q, %v; want %q", name, got, err, want)
	}
}

// says is class, of an error with these words.
func says(t *testing.T, what string, err error, want fault.Class, words ...string) {
	t.Helper()
	class(t, what, err, want)
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v does not say %q", what, err, word)
		}
	}
}

// longerImage tries to make a persistent image longer.
func longerImage(t *testing.T, r *Repository, name string, size int64) error {
	t.Helper()
	if _, err := r.Own(t.Context(), name, alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	target, _, err := r.OpenTarget(t.Context(), name, alice)
	if err != nil {
		t.Fatal(err)
	}
	before := target.Size()
	refused := target.Truncate(size)
	if _, err := target.WriteAt([]byte("written"), before-7); err != nil {
		t.Errorf("a write after that: %v", err)
	}
	if err := errors.Join(target.Sync(), target.Close(), r.Disown(t.Context(), name, alice)); err != nil {
		t.Error(err)
	}
	return refused
}

// TestSnapshots is what one may do with a parent and its snapshot, and what not.
func TestSnapshots(t *testing.T) {
	s, r := thick(t)
	text := strings.Repeat("parent", 20_000)
	written(t, r, "d/a", text)
	clone(t, r, "d/a", "b", repository.LVMSnapshot)
	clone(t, r, "b", "c", repository.Copied) // LVM has no snapshots of snapshots
	parent(t, r, "b", "d/a")
	parent(t, r, "c", "")
	says(t, "delete under a clone", r.Delete(t.Context(), "d/a"), fault.Busy, "d/a", "needed by b")
	says(t, "a longer clone", longerImage(t, r, "b", 1<<20), fault.WrongState, "object b", "snapshot of d/a", "image flatten")
	says(t, "a longer parent", longerImage(t, r, "d/a", 1<<20), fault.Busy, "object d/a", "needed by b")
	text = text[:len(text)-7] + "written"
	clone(t, r, "d/a", "e", repository.Copied) // it was a machine's: there will be writes to it
	if err := longerImage(t, r, "b", int64(len(text)+1)); err != nil {
		t.Errorf("longer, but in the same extent: %v", err)
	}
	if _, err := r.Own(t.Context(), "b", alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	says(t, "flatten what is in use", r.Flatten(t.Context(), "b"), fault.Busy, alice.Host)
	if err := r.Disown(t.Context(), "b", alice); err != nil {
		t.Fatal(err)
	}
	source, err := r.Open(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for range 2 {
		if err := r.Flatten(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		parent(t, r, "b", "")
	}
	b := make([]byte, 6)
	if _, err := source.ReadAt(b, 0); err != nil || string(b) != "parent" {
		t.Errorf("who reads it meanwhile: %q, %v", b, err)
	}
	source.Close()
	if err := longerImage(t, r, "b", 1<<20); err != nil {
		t.Errorf("longer, now that it is independent: %v", err)
	}
	if err := r.Delete(t.Context(), "d/a"); err != nil {
		t.Error(err)
	}
	want := strings.Repeat("parent", 20_000)
	if got := stored(t, s, r, "b"); len(got) != 1<<20 || !strings.HasPrefix(got, want[:len(want)-7]+"written\x00") && !strings.HasPrefix(got, want[:len(want)-7]) {
		t.Errorf("%d bytes", len(got))
	}
	if stored(t, s, r, "c") != want || stored(t, s, r, "e") != text {
		t.Error("copies are different")
	}
	all, err := r.List(t.Context(), "")
	if err != nil || len(all) != 3 || all[0].Name != "b" || all[0].Size != 1<<20 {
		t.Error(all, err)
	}
	for _, i := range all {
		if err := r.Delete(t.Context(), i.Name); err != nil {
			t.Error(err)
		}
	}
	clean(t, s)
}

// TestCopyFrom: a clone that depends on nobody, when that is asked for.
func TestCopyFrom(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", "text")
	w, kind, err := r.CopyFrom(t.Context(), "a", "b")
	if err != nil || kind != repository.Copied {
		t.Fatal(kind, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil || stored(t, s, r, "b") != "text" {
		t.Error(err)
	}
}

// TestLongNames: the kernel's devices below a snapshot have longer names.
func TestLongNames(t *testing.T) {
	_, r := thick(t)
	long := strings.Repeat("x", 127-len(testGroup)-1-len("hlp--"))
	for _, name := range []string{"a", long} {
		written(t, r, name, "text")
	}
	clone(t, r, "a", "y"+long[1:], repository.Copied)
	clone(t, r, long, "b", repository.Copied)
	clone(t, r, "a", "c", repository.LVMSnapshot)
	_, err := r.Stat(t.Context(), long+"x")
	class(t, "a name for no volume at all", err, fault.Invalid)
}

// TestForeignSnapshot: LVM would remove it with its origin.
func TestForeignSnapshot(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", "text")
	tools := lvm.Tools{Runner: s.Host}
	if err := tools.Create(t.Context(), lvm.New{Group: testGroup, Name: "backup", Origin: objectPrefix + "a", Size: 1 << 20, Chunk: 4096}); err != nil {
		t.Fatal(err)
	}
	says(t, "delete", r.Delete(t.Context(), "a"), fault.Busy, "volume backup (not Hayloft's)")
	if _, err := r.Own(t.Context(), "a", alice, 0, 0); err != nil {
		t.Errorf("it is as it was: %v", err)
	}
	// One that comes between the last look and LVM: under its lock it does not remove an origin.
	v, err := r.lookup(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	class(t, "remove an origin", r.remove(t.Context(), v), fault.Busy)
	if text, err := os.ReadFile(s.Path("backup")); err != nil || string(text[:4]) != "text" || stored(t, s, r, "a") != "text" {
		t.Error(err)
	}
}

// TestFullForSnapshots: a snapshot takes as much as a copy, and says so when there is not as much.
func TestFullForSnapshots(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", strings.Repeat("x", 1<<20))
	clone(t, r, "a", "b", repository.LVMSnapshot)
	c, err := r.Capacity(t.Context())
	if err != nil || c.Used < 2<<20 {
		t.Errorf("%+v, %v", c, err)
	}
	tools := lvm.Tools{Runner: s.Host}
	if err := tools.Create(t.Context(), lvm.New{Group: testGroup, Name: "most", Size: c.Free - 1<<20 + testExtent}); err != nil {
		t.Fatal(err)
	}
	_, _, err = r.CreateFrom(t.Context(), "a", "c")
	class(t, "clone", err, fault.OutOfSpace)
	says(t, "flatten", r.Flatten(t.Context(), "b"), fault.OutOfSpace, "object b")
	parent(t, r, "b", "a")
	if stored(t, s, r, "b") != strings.Repeat("x", 1<<20) {
		t.Error("the clone is different")
	}
	if err := tools.Remove(t.Context(), testGroup, "most"); err != nil {
		t.Fatal(err)
	}
	clean(t, s)
}

// TestInTheWay: what others do with a clone or its parent while it is made or made independent.
func TestInTheWay(t *testing.T) {
	s, r := thick(t)
	other := s.repository(t, nil)
	during := func(program string, do func() error) {
		s.before(func(cmd command.Cmd) error {
			if cmd.Name != program {
				return nil
			}
			s.before(nil)
			return do()
		})
	}
	written(t, r, "a", "text")
	clone(t, r, "a", "b", repository.LVMSnapshot)
	owner := repository.Owner{Host: "host-two", Machine: 2}
	during("dd", func() error { _, err := other.Own(context.Background(), "b", owner, 0, 0); return err })
	class(t, "flatten what is taken meanwhile", r.Flatten(t.Context(), "b"), fault.Busy)
	parent(t, r, "b", "a")
	if m, err := r.Marked(t.Context(), "b"); err != nil || m.Owner != owner {
		t.Error(m, err)
	}
	if err := r.Disown(t.Context(), "b", owner); err != nil {
		t.Error(err)
	}
	during("dd", func() error { return other.Delete(context.Background(), "b") })
	class(t, "flatten what is deleted meanwhile", r.Flatten(t.Context(), "b"), fault.Busy)
	_, err := r.Stat(t.Context(), "b")
	class(t, "what is deleted", err, fault.NotFound)
	during("lvcreate", func() error { return other.Delete(context.Background(), "a") })
	_, _, err = r.CreateFrom(t.Context(), "a", "b")
	if err == nil {
		t.Error("a clone of what was deleted meanwhile")
	}
	_, err = r.Stat(t.Context(), "b")
	class(t, "the clone", err, fault.NotFound)
	clean(t, s)

	written(t, r, "a", "text")
	during("dd", func() error { _, err := other.Own(context.Background(), "a", owner, 0, 0); return err })
	_, _, err = r.CopyFrom(t.Context(), "a", "b")
	class(t, "a copy of what is taken meanwhile", err, fault.Busy)
	if err := errors.Join(r.Disown(t.Context(), "a", owner), r.Delete(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	written(t, r, "a", "text")
	during("lvchange", func() error {
		w, _, err := other.CreateFrom(context.Background(), "a", "b")
		if err != nil {
			return err
		}
		return w.Commit(context.Background())
	})
	says(t, "delete, a clone came between", r.Delete(t.Context(), "a"), fault.Busy, "needed by b")
	if v, err := r.lookup(t.Context(), "a"); err != nil || v.mark.use != free {
		t.Errorf("%+v, %v", v, err)
	}
	if err := r.Delete(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	w, _, err := r.CreateFrom(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	says(t, "delete while a clone is made", other.Delete(t.Context(), "a"), fault.Busy, "b (is being written)")
	if err := w.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	parent(t, r, "b", "a")
	if err := r.Delete(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	during("lvrename", func() error { // the last look came before
		_, err := other.Own(context.Background(), "a", owner, 0, 0)
		class(t, "own what is deleted", err, fault.Busy)
		return nil
	})
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	clean(t, s)
}
