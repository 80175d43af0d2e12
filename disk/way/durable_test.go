package way

import (
	"path/filepath"
	"testing"

	"hayloft/disk"
	"hayloft/internal/durable/durabletest"
	"hayloft/lab/labtest"
)

// TestDisksAreDurable: what a machine is handed is there after a power cut, by its name. For one that came back from a stash,
// the stash goes next.
func TestDisksAreDurable(t *testing.T) {
	labtest.Root(t, "mkfs.ext4")
	b := newBench(t, 0)
	img := b.image("tiny", 1)
	archive := b.add("root", tarGz(t, tarFile("etc/motd", 5)))
	dir, w := durabletest.Watch(t)
	b.run = dir
	r := b.request(1, disk.Spec{ID: 0, Image: img}, disk.Spec{ID: 1, Volatile: "fs", FS: "ext4", Size: 8 << 20}, disk.Spec{ID: 2, Image: archive, Tree: true})
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"prepare", func() error { _, err := b.way.Prepare(t.Context(), r, nil); return err }},
		{"stash", func() error { return b.way.Stash(t.Context(), 1, r.Dir, nil, b.repository) }},
		{"unstash", func() error { _, err := b.way.Unstash(t.Context(), r, b.repository, nil); return err }},
	} {
		if err := step.do(); err != nil {
			t.Fatal(step.what, err)
		}
		if step.what == "stash" {
			continue // what is left undone of a removal is removed again
		}
		for _, left := range w.Unsynced() {
			if filepath.Dir(left) == "rename 1/disks" {
				t.Errorf("%s: %s is not durable", step.what, left)
			}
		}
	}
}
