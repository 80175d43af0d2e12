// Package repositorytest is the suite that every repository driver passes.
package repositorytest

import (
	"context"
	"io"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/image"
)

// Run runs the suite; open gives an empty repository each time.
func Run(t *testing.T, open func(t *testing.T) repository.Repository) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, repository.Repository)
	}{
		{"written objects read back", readBack},
		{"invisible until commit", invisible},
		{"abort leaves nothing", abort},
		{"one writer a name", oneWriter},
		{"delete", remove},
		{"list", list},
		{"names", names},
		{"holes read as zeros", holes},
		{"index beside the object", publish},
		{"capacity", capacity},
		{"ended context", ended},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
	t.Run("writable", func(t *testing.T) { writable(t, open) })
	t.Run("cloning", func(t *testing.T) { Cloning(t, open, 0, 1) })
}

func create(t *testing.T, r repository.Repository, name, content string) {
	t.Helper()
	w, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
}

func read(t *testing.T, r repository.Repository, name string) string {
	t.Helper()
	s, err := r.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func class(t *testing.T, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

func none(t *testing.T, r repository.Repository) {
	t.Helper()
	if all, err := r.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("there is %v, %v", all, err)
	}
}

func readBack(t *testing.T, r repository.Repository) {
	create(t, r, "a", "hello")
	create(t, r, "deep/er/b", "there")
	if got := read(t, r, "a") + read(t, r, "deep/er/b"); got != "hellothere" {
		t.Error(got)
	}
	if info, err := r.Stat(t.Context(), "a"); err != nil || info.Size != 5 || info.Name != "a" || info.Modified.IsZero() {
		t.Error(info, err)
	}
	_, err := r.Create(t.Context(), "a")
	class(t, "create again", err, fault.Exists)
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := s.ReadAt(make([]byte, 9), 3); n != 2 || err != io.EOF {
		t.Errorf("beyond the end: %d %v", n, err)
	}
}

func invisible(t *testing.T, r repository.Repository) {
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	none(t, r)
	_, err = r.Open(t.Context(), "a")
	class(t, "open", err, fault.NotFound)
	_, err = r.Stat(t.Context(), "a")
	class(t, "stat", err, fault.NotFound)
}

func abort(t *testing.T, r repository.Repository) {
	w, err := r.Create(t.Context(), "d/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 100); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	none(t, r)
	create(t, r, "d/a", "again")
}

func oneWriter(t *testing.T, r repository.Repository) {
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Create(t.Context(), "a")
	class(t, "second writer", err, fault.Busy)
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = r.Create(t.Context(), "a")
	class(t, "after commit", err, fault.Exists)
}

func remove(t *testing.T, r repository.Repository) {
	create(t, r, "d/a", "x")
	if err := r.Delete(t.Context(), "d/a"); err != nil {
		t.Fatal(err)
	}
	class(t, "again", r.Delete(t.Context(), "d/a"), fault.NotFound)
	none(t, r)
}

func list(t *testing.T, r repository.Repository) {
	for _, n := range []string{"b", "a", "m/1/x", "m/10/x"} {
		create(t, r, n, n)
	}
	for prefix, want := range map[string]string{"": "a b m/1/x m/10/x ", "m/1/": "m/1/x ", "m": "m/1/x m/10/x ", "z": ""} {
		all, err := r.List(t.Context(), prefix)
		got := ""
		for _, i := range all {
			got += i.Name + " "
		}
		if err != nil || got != want {
			t.Errorf("%q: %q, %v", prefix, got, err)
		}
	}
}

func names(t *testing.T, r repository.Repository) {
	for _, n := range []string{"", "/a", "a/", "../a", "a/../b", "./a", "a//b", "a\nb", ".a", "a/b/c/d/e", "a\x00b"} {
		_, err := r.Create(t.Context(), n)
		class(t, "create "+n, err, fault.Invalid)
		_, err = r.Open(t.Context(), n)
		class(t, "open "+n, err, fault.Invalid)
		_, err = r.Stat(t.Context(), n)
		class(t, "stat "+n, err, fault.Invalid)
		class(t, "delete "+n, r.Delete(t.Context(), n), fault.Invalid)
	}
}

func holes(t *testing.T, r repository.Repository) {
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.SetSize(1 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 700_000); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	want[700_000] = 'x'
	if got := read(t, r, "a"); got != string(want) {
		t.Error("content differs")
	}
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if x, ok := s.(repository.Extents); ok {
		if start, end, err := x.NextData(0); err != nil || start > 700_000 || end <= 700_000 {
			t.Errorf("data from %d to %d, %v", start, end, err)
		}
		if _, _, err := x.NextData(1 << 20); err != io.EOF {
			t.Errorf("data at the end: %v", err)
		}
	}
}

func publish(t *testing.T, r repository.Repository) {
	// An index without object is what a crash left: it gives way.
	create(t, r, image.IndexName("a"), "stale")
	info, err := image.Create(t.Context(), image.CreateOptions{Size: 1 << 20, To: r, Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := image.UnmarshalIndex([]byte(read(t, r, image.IndexName("a"))))
	if err != nil || x.Digest() != info.Digest {
		t.Errorf("%v", err)
	}
}

func capacity(t *testing.T, r repository.Repository) {
	c, err := r.Capacity(t.Context())
	if err == nil && c == (disk.Capacity{}) {
		return // unknown
	}
	if err != nil || c.Total <= 0 || c.Free < 0 || c.Used < 0 || c.Free > c.Total {
		t.Errorf("%+v, %v", c, err)
	}
}

func ended(t *testing.T, r repository.Repository) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Create(ctx, "a"); err == nil {
		t.Error("created")
	}
	if _, err := r.List(ctx, ""); err == nil {
		t.Error("listed")
	}
	none(t, r)
}
