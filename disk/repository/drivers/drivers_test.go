package drivers

import (
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
)

// Every driver that can be named is there, and nothing else.
func TestDriversAreThose(t *testing.T) {
	for _, name := range cloud.DatastoreDriverNames() {
		if _, err := Open(disk.Repository{ID: 7, Driver: name}); fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(disk.Repository{ID: 7, Driver: "floppy"}); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

func TestPoolOpensOnce(t *testing.T) {
	var p Pool
	dir := t.TempDir()
	a, err := p.Open(disk.Repository{ID: 1, Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Open(disk.Repository{ID: 1, Path: dir})
	if err != nil || a != b {
		t.Errorf("opened again: %v", err)
	}
	c, err := p.Open(disk.Repository{ID: 1, Path: dir, Options: map[string]string{"X": "y"}})
	if err != nil || a == c {
		t.Errorf("with other options: %v", err)
	}
	if _, err := p.Open(disk.Repository{Driver: "floppy"}); err == nil {
		t.Error("opened a floppy")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
