package iscsi

import (
	"bytes"
	"os"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/internal/lvm"
)

// TestForeign: a volume with a name of ours, of somebody else's, is never touched.
func TestForeign(t *testing.T) {
	s, r := thick(t)
	tools := lvm.Tools{Runner: s.Host}
	for _, name := range []string{objectPrefix + "a", partPrefix + "b", deadPrefix + "x"} {
		if err := tools.Create(t.Context(), lvm.New{Group: testGroup, Name: name, Size: 1 << 20, Tags: []string{"theirs"}}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.Open(t.Context(), "a")
	class(t, "open", err, fault.Busy)
	_, err = r.Stat(t.Context(), "a")
	class(t, "stat", err, fault.Busy)
	for _, name := range []string{"a", "b"} {
		_, err = r.Create(t.Context(), name)
		class(t, "create "+name, err, fault.Busy)
	}
	class(t, "delete", r.Delete(t.Context(), "a"), fault.Busy)
	_, err = r.Own(t.Context(), "a", alice, 0, 0)
	class(t, "own", err, fault.Busy)
	_, _, err = r.CreateFrom(t.Context(), "a", "c")
	class(t, "clone", err, fault.Busy)
	if all, err := r.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	all, err := tools.Volumes(t.Context(), testGroup)
	if err != nil || len(all) != 3 {
		t.Error(all, err)
	}
	for _, v := range all {
		b, err := os.ReadFile(s.Path(v.Name))
		if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{0xEE}, 1<<20)) || len(v.Tags) != 1 {
			t.Errorf("%s was changed: %v", v.Name, err)
		}
	}
}
