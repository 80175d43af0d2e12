package iscsi

import (
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/lab/sshlab"
)

// TestOverSSH: the storage server is another host, whose LVM is played.
func TestOverSSH(t *testing.T) {
	server := sshlab.Start(t)
	s, _ := thick(t)
	options := server.Options()
	options["PORTAL"] = s.tgt.Portal
	r := s.repository(t, options)
	s.rest = s.tgt.Runner(r.host.(command.Runner))
	written(t, r, "d/a", "over two networks")
	w, kind, err := r.CopyFrom(t.Context(), "d/a", "b") // dd runs over there
	if err != nil || kind != repository.Copied {
		t.Fatal(kind, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := content(t, r, "b"); got != "over two networks" {
		t.Error(got)
	}
	source, err := r.Open(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	p := make([]byte, 4)
	if n, err := source.ReadAt(p, 0); n != 4 || err != nil {
		t.Errorf("reading needs only the target: %d, %v", n, err)
	}
	bounded(t, "open", fault.Unavailable, func() error { _, err := r.Open(t.Context(), "b"); return err })
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	if got := content(t, r, "d/a"); got != "over two networks" {
		t.Error(got)
	}
	clean(t, s)
}
