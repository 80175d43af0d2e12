package iscsi

import (
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

// TestFull: a group without room.
func TestFull(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", strings.Repeat("x", 1<<20))
	w, err := r.Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	class(t, "set size", w.SetSize(testSize), fault.OutOfSpace)
	_, err = w.WriteAt([]byte("far"), testSize)
	class(t, "write", err, fault.OutOfSpace)
	if _, err := w.WriteAt([]byte("near"), testSize/2); err != nil { // more would not be had
		t.Error(err)
	}
	_, _, err = r.CreateFrom(t.Context(), "b", "c")
	class(t, "clone of what is not there", err, fault.NotFound)
	if _, err := r.Own(t.Context(), "a", alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	target, _, err := r.OpenTarget(t.Context(), "a", alice)
	if err != nil {
		t.Fatal(err)
	}
	class(t, "longer image", target.Truncate(testSize), fault.OutOfSpace)
	if n, err := target.ReadAt(make([]byte, 10), 0); n != 10 || err != nil || target.Size() != 1<<20 {
		t.Error(n, err)
	}
	target.Close()
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	clean(t, s)
	if c, err := r.Capacity(t.Context()); err != nil || c.Used > 2<<20 || c.Total != testSize {
		t.Errorf("%+v, %v", c, err)
	}
}
