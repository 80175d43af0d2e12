package repositorytest

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// Reading runs the part of the suite that writes nothing, for repositories that are read-only; open gives one with
// these objects, names and contents, and nothing else.
func Reading(t *testing.T, open func(t *testing.T, objects map[string]string) repository.Repository) {
	content := string(bytes.Repeat([]byte("0123456789abcdef"), 50_000))
	objects := map[string]string{"a": "hello", "deep/er/b": "there", "empty": "", "big": content, "odd #1%2F?x=y&ü": "odd"}
	for _, test := range []struct {
		name string
		run  func(*testing.T, repository.Repository)
	}{
		{"objects read back", func(t *testing.T, r repository.Repository) { contents(t, r, objects) }},
		{"ends of an object", ends},
		{"what is not there", missing},
		{"bad names", badNames},
		{"concurrent readers", func(t *testing.T, r repository.Repository) { readers(t, r, "big", content) }},
		{"ended context", endedReader},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t, objects)) })
	}
}

func contents(t *testing.T, r repository.Repository, objects map[string]string) {
	for name, content := range objects {
		if got := read(t, r, name); got != content {
			t.Errorf("%s: %d bytes differ from %d", name, len(got), len(content))
		}
		info, err := r.Stat(t.Context(), name)
		if err != nil || info.Size != int64(len(content)) || info.Name != name || info.Modified.IsZero() {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

func ends(t *testing.T, r repository.Repository) {
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, row := range []struct {
		length int
		offset int64
		want   string
		err    error
	}{{5, 0, "hello", nil}, {9, 3, "lo", io.EOF}, {1, 5, "", io.EOF}, {1, 99, "", io.EOF}, {0, 2, "", nil}, {1, 4, "o", nil}} {
		p := make([]byte, row.length)
		n, err := s.ReadAt(p, row.offset)
		if string(p[:n]) != row.want || err != row.err && !(err == io.EOF && n == row.length) {
			t.Errorf("%d bytes at %d: %q, %v", row.length, row.offset, p[:n], err)
		}
	}
}

func missing(t *testing.T, r repository.Repository) {
	for _, name := range []string{"b", "deep/er/x", "deep"} {
		_, err := r.Open(t.Context(), name)
		if !fault.Is(err, fault.NotFound) && !(name == "deep" && fault.Is(err, fault.Invalid)) {
			t.Errorf("open %s: %v", name, err)
		}
		_, err = r.Stat(t.Context(), name)
		if !fault.Is(err, fault.NotFound) && !(name == "deep" && fault.Is(err, fault.Invalid)) {
			t.Errorf("stat %s: %v", name, err)
		}
	}
}

func badNames(t *testing.T, r repository.Repository) {
	for _, n := range []string{"", "/a", "a/", "../a", "a/../b", "./a", "a//b", "a\nb", ".a", "a/b/c/d/e", "a\x00b", `a\b`} {
		_, err := r.Open(t.Context(), n)
		class(t, "open "+n, err, fault.Invalid)
		_, err = r.Stat(t.Context(), n)
		class(t, "stat "+n, err, fault.Invalid)
		_, err = r.Create(t.Context(), n)
		class(t, "create "+n, err, fault.Invalid)
		class(t, "delete "+n, r.Delete(t.Context(), n), fault.Invalid)
	}
}

func readers(t *testing.T, r repository.Repository, name, content string) {
	s, err := r.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for offset := i * 1000; offset < len(content); offset += 90_000 {
				b := make([]byte, 5000)
				n, err := s.ReadAt(b, int64(offset))
				if err != nil && err != io.EOF || string(b[:n]) != content[offset:offset+n] {
					t.Errorf("at %d: %d, %v", offset, n, err)
				}
			}
		})
	}
	group.Wait()
}

func endedReader(t *testing.T, r repository.Repository) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := r.Open(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if n, err := s.ReadAt(make([]byte, 5), 0); err == nil {
		t.Errorf("read %d bytes", n)
	}
	if _, err := r.Open(ctx, "a"); err == nil {
		t.Error("opened")
	}
	if _, err := r.Stat(ctx, "a"); err == nil {
		t.Error("described")
	}
}
