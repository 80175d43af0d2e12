package repositorytest

import (
	"os"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/image"
)

// cloneWithIndex: an index is an object like others, and is not cloned with what it is of.
func cloneWithIndex(t *testing.T, r repository.Repository, c repository.Cloner) {
	info, err := image.Create(t.Context(), image.CreateOptions{Size: 1 << 20, To: r, Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	derive(t, c, "a", "b", "", 0)
	present(t, r, "a", image.IndexName("a"), "b")
	derive(t, c, image.IndexName("a"), image.IndexName("b"), "", 0)
	x, err := image.UnmarshalIndex([]byte(read(t, r, image.IndexName("b"))))
	if err != nil || x.Digest() != info.Digest {
		t.Error(err)
	}
	for _, name := range []string{image.IndexName("b"), "b", image.IndexName("a"), "a"} {
		if err := r.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	none(t, r)
}

// persistentParent: parent and clone are written to by their machines, each for itself.
func persistentParent(t *testing.T, r repository.Repository, c repository.Cloner) {
	w, ok := r.(repository.Writable)
	if !ok {
		return
	}
	content := noise(10)
	create(t, r, "d/p", content)
	mustOwn(t, w, one)
	put := func(name string, owner repository.Owner, text string, offset int64) {
		t.Helper()
		s, _, err := w.OpenTarget(t.Context(), name, owner)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.WriteAt([]byte(text), offset); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	put("d/p", one, "before", 1000)
	content = changed(content, "before", 1000)
	derive(t, c, "d/p", "d/q", "clone", 5000)
	put("d/p", one, "after", 2000)
	if _, err := w.Own(t.Context(), "d/q", other, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	put("d/q", other, "later", 400_000)
	same(t, r, "d/p", changed(content, "after", 2000))
	same(t, r, "d/q", changed(changed(content, "clone", 5000), "later", 400_000))
	for name, owner := range map[string]repository.Owner{"d/p": one, "d/q": other} {
		if err := w.Disown(t.Context(), name, owner); err != nil {
			t.Error(err)
		}
	}
	if err := c.Flatten(t.Context(), "d/q"); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "d/p"); err != nil {
		t.Error(err)
	}
	same(t, r, "d/q", changed(changed(content, "clone", 5000), "later", 400_000))
}

func undrainedParent(t *testing.T, r repository.Repository, c repository.Cloner) {
	w, ok := r.(repository.Writable)
	if !ok {
		return
	}
	create(t, r, "d/p", noise(11))
	m := mustOwn(t, w, one)
	if err := w.SetUndrained(t.Context(), "d/p", one, m.Generation, true); err != nil {
		t.Fatal(err)
	}
	_, _, err := c.CreateFrom(t.Context(), "d/p", "d/q")
	class(t, "clone of what is not all there", err, fault.Busy)
	if err != nil && !strings.Contains(err.Error(), "host-one") {
		t.Errorf("%v does not say host-one", err)
	}
	present(t, r, "d/p")
	if err := w.SetUndrained(t.Context(), "d/p", one, m.Generation, false); err != nil {
		t.Fatal(err)
	}
	derive(t, c, "d/p", "d/q", "", 0)
	same(t, r, "d/q", noise(11))
}
