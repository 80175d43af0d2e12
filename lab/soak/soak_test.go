package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) {
	if !keeperMain() {
		os.Exit(m.Run())
	}
}

// withFiles, in the environment, has TestSoak export files and block devices too.
const withFiles = "HAYLOFT_SOAK_FILES"

// TestSoak is a short run of everything but files and block devices: who uses one of these may get an I/O error when
// the process is killed in the middle of taking up their request, and this run takes any error for a failure. `make soak`
// has them.
func TestSoak(t *testing.T) {
	labtest.Root(t)
	dir, err := os.MkdirTemp("", "hl") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := options{binary: filepath.Join(dir, "hayloft"), dir: dir, time: 20 * time.Second, seed: uint64(time.Now().UnixNano()) % 1e9, bases: 4, disks: 4, files: os.Getenv(withFiles) != ""}
	build := exec.Command("go", "build", "-o", o.binary, "./cmd/hayloft")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, said)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := run(ctx, o, func(line string) { t.Log(line) }); err != nil {
		t.Error(err)
	}
}

// TestKilledRun: of a run that is killed while it exports files, nothing stays.
func TestKilledRun(t *testing.T) {
	labtest.Root(t)
	dir, err := os.MkdirTemp("", "hk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := exec.Command(os.Args[0], "-test.run=^TestSoak$")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, withFiles+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // also when the test ends sooner
	s := &soak{options: options{dir: dir}}
	within(t, 4*time.Minute, "files", func() bool { return len(s.mounts()) > 0 })
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	within(t, 4*time.Minute, "nothing left", func() bool {
		return len(processesOf(dir)) == 0 && len(s.mounts()) == 0 && len(s.loops()) == 0
	})
}

func within(t *testing.T, limit time.Duration, what string, reached func() bool) {
	t.Helper()
	for began := time.Now(); !reached(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// TestDiffer says where.
func TestDiffer(t *testing.T) {
	want := make([]byte, 3*chunk)
	got := append([]byte{}, want...)
	if err := differ(got, want, chunk); err != nil {
		t.Error(err)
	}
	got[chunk+5], got[chunk+900] = 1, 2
	err := differ(got, want, chunk)
	const said = "196608 bytes at 65536 differ, from byte 131077 (chunk 2, 5 in it) to 131972: 01000000000000000000000000000000 instead of 00000000000000000000000000000000"
	if err == nil || err.Error() != said {
		t.Errorf("%v instead of %s", err, said)
	}
	if differ(got[1:], want, 0) == nil {
		t.Error("a shorter one is the same")
	}
}

// TestPlaces are within the worker's own stripes, wherever the disk ends.
func TestPlaces(t *testing.T) {
	s := &soak{options: options{seed: 3}}
	for _, size := range []int{100, 4096, 10*chunk + 7} {
		v := &volume{soak: s, model: make([]byte, size)}
		for of := 1; of < 4; of++ {
			for number := range of {
				w := worker{volume: v, random: s.random(uint64(size + of)), number: number, of: of, stripe: 3001}
				found := 0
				for range 1000 {
					at, length, ok := w.place()
					if !ok {
						continue
					}
					found++
					if last := at + length - 1; at < 0 || length < 1 || last >= size || at/w.stripe != last/w.stripe || at/w.stripe%of != number {
						t.Fatalf("%d bytes at %d of %d for worker %d of %d", length, at, size, number, of)
					}
				}
				if found == 0 && size > of*w.stripe {
					t.Errorf("no place in %d bytes for worker %d of %d", size, number, of)
				}
			}
		}
	}
}
