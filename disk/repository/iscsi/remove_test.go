package iscsi

import (
	"testing"

	"hayloft/internal/command"
)

// TestDeletedWhileRead: who reads goes on; the space comes back by Sweep.
func TestDeletedWhileRead(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", "hello")
	source, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	p := make([]byte, 5)
	if _, err := source.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	s.before(func(cmd command.Cmd) error { // the volume is open, as LVM would see
		if cmd.Name == "lvremove" {
			return &command.Error{Cmd: cmd, Status: 5, Stderr: "  Logical volume vg/x in use.\n"}
		}
		return nil
	})
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.before(nil)
	written(t, r, "a", "other")
	if _, err := source.ReadAt(p, 0); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	source.Close()
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if got := content(t, r, "a"); got != "other" {
		t.Error(got)
	}
	clean(t, s)
}
