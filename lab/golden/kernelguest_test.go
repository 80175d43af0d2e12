package golden

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

func TestKernelGuestPackagesAreResolvedOnce(t *testing.T) {
	labtest.Root(t, "apt-get")
	cache, state := t.TempDir(), aptState
	aptState = []string{t.TempDir()} // the real one may change at any time
	t.Cleanup(func() { aptState = state })
	asked := 0
	b := kernelGuest{run: runner(func(c command.Cmd) { asked++ })}
	first, err := b.resolved(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.resolved(t.Context(), cache)
	if err != nil || !slices.Equal(first, again) || asked != 1 {
		t.Errorf("apt was asked %d times; %d and %d packages, %v", asked, len(first), len(again), err)
	}
	for _, name := range []string{"lvm2", "bcache-tools", "tgt", "nfs-kernel-server", "libc6", "ceph-common"} {
		if !slices.ContainsFunc(first, func(deb string) bool { return packageName(deb) == name }) {
			t.Errorf("package %s is missing", name)
		}
	}
	for _, deb := range first {
		if leftOut(deb) || !strings.HasSuffix(deb, ".deb") {
			t.Errorf("package %s", deb)
		}
	}
}

// runner runs programs and tells of each.
type runner func(command.Cmd)

func (r runner) Run(ctx context.Context, c command.Cmd) ([]byte, error) {
	r(c)
	return command.Exec{}.Run(ctx, c)
}

func TestKernelGuestKey(t *testing.T) {
	one, other := kernelGuestKey([]string{"a_1_all.deb"}), kernelGuestKey([]string{"a_2_all.deb"})
	if one == other || !strings.HasPrefix(one, "guest-") {
		t.Errorf("keys %s and %s: want another one for another version", one, other)
	}
}

func TestStateOfAptChangesWithItsFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "list")
	var states []string
	for _, text := range []string{"", "x"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		state, err := describeState([]string{dir, filepath.Join(dir, "missing")})
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, state)
	}
	if states[0] == states[1] {
		t.Errorf("state stays %q", states[0])
	}
}
