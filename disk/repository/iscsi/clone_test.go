package iscsi

import (
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

// TestThickToThin: a datastore got a pool later. What its thick images are cloned to is copied, without their holes.
func TestThickToThin(t *testing.T) {
	s, r := thick(t)
	text := "begin" + strings.Repeat("\x00", 2<<20) + "end"
	written(t, r, "a", text)
	if err := (lvm.Tools{Runner: s.Host}).CreatePool(t.Context(), lvm.NewPool{Group: testGroup, Name: "pool", Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	later := s.repository(t, map[string]string{"POOL": "pool"})
	clone(t, later, "a", "b", repository.Copied)
	clone(t, later, "b", "c", repository.ThinClone)
	for _, name := range []string{"a", "b", "c"} {
		if content(t, later, name) != text {
			t.Errorf("%s is different", name)
		}
	}
	_, err := s.repository(t, map[string]string{"POOL": "none"}).Create(t.Context(), "d")
	class(t, "no such pool", err, fault.Unavailable)
	_, err = s.repository(t, map[string]string{"POOL": objectPrefix + "a"}).Create(t.Context(), "d")
	class(t, "what is no pool", err, fault.Unsupported)
	clean(t, s)
}
