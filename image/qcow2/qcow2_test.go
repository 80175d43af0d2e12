package qcow2

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hayloft/lab/labtest"
)

func create(t testing.TB, path string, o Overlay) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, o); err != nil {
		t.Fatal(err)
	}
}

func TestReadsBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o")
	want := Overlay{Size: 3 << 30, Backing: "/some/base"}
	create(t, path, Overlay{Size: want.Size, Backing: want.Backing, BackingFormat: "raw"})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := Read(f); err != nil || got != want {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestQEMUAgrees(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int64{"small": 1 << 20, "odd": 1<<29 + 512, "two L1 clusters": 8 << 42, "most": MaxSize} {
		path := filepath.Join(dir, name)
		create(t, path, Overlay{Size: size, Backing: base, BackingFormat: "raw"})
		if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		out, err := exec.Command("qemu-img", "info", "--output=json", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Size    int64  `json:"virtual-size"`
			Backing string `json:"backing-filename"`
			Format  string `json:"backing-filename-format"`
		}
		if err := json.Unmarshal(out, &info); err != nil || info.Size != size || info.Backing != base || info.Format != "raw" {
			t.Fatalf("%s: %s", name, out)
		}
		for _, command := range []string{"write -P 7 0 256k", "write -P 9 " + "900k 100k", "read -P 7 0 256k"} {
			if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", command, path).CombinedOutput(); err != nil {
				t.Fatalf("%s: %s: %v\n%s", name, command, err, out)
			}
		}
		if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
			t.Fatalf("after writes: %v\n%s", err, out)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	path := filepath.Join(b.TempDir(), "o")
	for b.Loop() {
		_ = os.Remove(path)
		create(b, path, Overlay{Size: 10 << 30, Backing: "/base", BackingFormat: "raw"})
	}
}
