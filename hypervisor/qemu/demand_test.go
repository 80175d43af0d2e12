package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"hayloft/hypervisor"
)

func TestDemandAddsUpThreads(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"10": "1500000000 500000000 7\n", "11": "250000000 0 1\n"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "schedstat"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := readDemand(dir)
	if want := (hypervisor.Demand{Ran: 1.75, Waited: 0.5}); err != nil || d != want {
		t.Errorf("%+v, %v, want %+v", d, err, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "11", "schedstat"), []byte("?"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readDemand(dir); err == nil {
		t.Error("an unknown format was read")
	}
	if d, err := readDemand("/proc/self/task"); err != nil || d.Ran <= 0 {
		t.Errorf("of this very process: %+v, %v", d, err)
	}
}
