package s3

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestLayout: parts follow each other, at finds each of them, and there is room for what S3 holds.
func TestLayout(t *testing.T) {
	for _, parent := range []int64{0, 1, leastCut, leastCut + 1, 1 << 30, 100 << 30, 5 << 40} {
		l := layoutOf(parent)
		size := max(2<<40, parent*11/10)
		parts := l.parts(size)
		if len(parts) > maxParts {
			t.Errorf("parent of %d: %d parts", parent, len(parts))
		}
		at := int64(0)
		for i, p := range parts {
			if p.start != at || p.end <= p.start || i < len(parts)-1 && p.end-p.start < leastCut || p.end-p.start > 5<<30 {
				t.Fatalf("parent of %d: part %d is %+v, want it from %d", parent, i, p, at)
			}
			for _, offset := range []int64{p.start, (p.start + p.end) / 2, p.end - 1} {
				if n, whole := l.at(offset); n != i || whole.start != p.start || i < len(parts)-1 && whole.end != p.end {
					t.Fatalf("parent of %d: %d is in part %d %+v, want %d %+v", parent, offset, n, whole, i, p)
				}
			}
			at = p.end
		}
		if at != size {
			t.Errorf("parent of %d: %d bytes of %d", parent, at, size)
		}
	}
}

// TestSpans compares with a set of single bytes.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 40
		var s spans
		var model [size]bool
		draw := func(name string) span {
			a := rapid.IntRange(0, size).Draw(t, name)
			return span{int64(a), int64(rapid.IntRange(a, size).Draw(t, name))}
		}
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			if rapid.IntRange(0, 5).Draw(t, "cut") == 0 {
				at := draw("at").start
				s = s.cut(at)
				clear(model[at:])
				continue
			}
			r := draw("range")
			s = s.add(r)
			for i := r.start; i < r.end; i++ {
				model[i] = true
			}
		}
		for i, r := range s {
			if r.start >= r.end || i > 0 && s[i-1].end >= r.start {
				t.Fatalf("%v", s)
			}
		}
		r := draw("asked")
		touched, covered := slices.Contains(model[r.start:r.end], true), !slices.Contains(model[r.start:r.end], false)
		if s.touches(r) != touched || s.covers(r) != covered {
			t.Fatalf("%v: %+v touched %v, covered %v", s, r, s.touches(r), s.covers(r))
		}
		var gaps [size]bool
		for _, g := range s.gaps(r) {
			for i := g.start; i < g.end; i++ {
				gaps[i] = true
			}
		}
		for i := range int64(size) {
			if want := !model[i] && i >= r.start && i < r.end; gaps[i] != want {
				t.Fatalf("%v: gaps of %+v are %v", s, r, s.gaps(r))
			}
		}
	})
}
