package system

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hayloft/lab/fleet"
	"hayloft/lab/golden"
)

// kind marks the sites of these tests, so that what a killed run left is found by the next.
const kind = "system"

// program is the path of the binary under test, built once a run.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "hayloft")
	build := exec.Command("go", "build", "-o", path, "./cmd/hayloft")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, said)
	}
	return path, nil
})

// images are the golden images, from the cache or made now.
var images = sync.OnceValues(func() (golden.Set, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return golden.Build(ctx, golden.Options{Log: func(line string) { fmt.Println("golden:", line) }})
})

// scratch is a directory of this run, set by TestMain before any test.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv("HAYLOFT_LAB") != "1" || os.Geteuid() != 0 {
		return m.Run()
	}
	stale, err := fleet.Runs(kind, false)
	if err != nil {
		fmt.Fprintln(os.Stderr, "runs that were killed:", err)
		return 1
	}
	for _, s := range stale {
		fmt.Println("taking down", s.Name(), "of a run that was killed")
		if _, err := s.TakeDown(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, s.Name()+":", err)
			return 1
		}
	}
	if scratch, err = os.MkdirTemp("", "hayloft-system-bin-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
