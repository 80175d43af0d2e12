package kernelcachetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/internal/command"
	"hayloft/internal/dm"
)

// sh runs a script; in a context of its own, since much of it is cleaning up.
func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := (command.Exec{}).Run(context.Background(), command.Cmd{Name: "/bin/sh", Args: []string{"-ec", script}})
	if err != nil {
		t.Errorf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// udevOwns has udev do what it does on any host: give block devices to a group whenever somebody wrote to them. In the guest,
// where it does not look names of groups up, a rule by number stands for that.
func udevOwns(t testing.TB) {
	const file = "/run/udev/rules.d/50-suite.rules"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	// It need not look into the suite's own devices, which takes a while.
	const rules = `SUBSYSTEM=="block", GROUP="6", MODE="0660"
SUBSYSTEM=="block", ATTR{dm/name}=="suite-source-*|suite-local-*", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", OPTIONS+="nowatch"
`
	if err := os.WriteFile(file, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "udevadm control --reload")
	t.Cleanup(func() { sh(t, "rm "+file+"; udevadm control --reload") })
}

const pairs = 3

// makePairs makes sources and local volumes, mapped devices of pieces of the two disks.
func makePairs(t *testing.T, disks []string) []kernelcache.Spec {
	t.Helper()
	tools := dm.Tools{Runner: command.Exec{}}
	var specs []kernelcache.Spec
	for n := range pairs {
		s := kernelcache.Spec{Source: fmt.Sprintf("suite-source-%d", n), Local: fmt.Sprintf("suite-local-%d", n), UID: 12345, GID: 23456}
		for _, d := range []struct {
			name, disk string
			size       int64
		}{{s.Source, disks[0], sourceSize}, {s.Local, disks[1], localSize}} {
			table := dm.LinearTable(dm.Linear{Device: d.disk, From: int64(n+1) * d.size / dm.SectorSize, Sectors: d.size / dm.SectorSize})
			if err := tools.Create(t.Context(), d.name, "SUITE-"+d.name, table); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { sh(t, "dmsetup remove --retry "+d.name) })
		}
		s.Source, s.Local = dm.Path(s.Source), dm.Path(s.Local)
		specs = append(specs, s)
	}
	return specs
}

// pair gives a source and an empty local volume, and what the source has.
func (s *suite) pair(name string, mode cache.Mode) (kernelcache.Spec, []byte) {
	s.Helper()
	spec := s.pairs[s.used]
	s.used++
	spec.Name, spec.Mode = name, mode
	sh(s.T, "blkdiscard -z "+spec.Local)
	content := pattern(s.used, sourceSize)
	if err := write(spec.Source, 0, content); err != nil {
		s.Fatal(err)
	}
	// When a part of the suite fails, the next ones shall have the kernel to themselves.
	s.Cleanup(func() {
		if !s.Failed() {
			return
		}
		ctx := context.Background()
		_, err := s.driver.Attach(ctx, spec)
		s.Logf("after the failure: %v, %v, %v", err, s.driver.Flush(ctx, spec, nil), s.driver.Detach(ctx, spec))
	})
	return spec, content
}

// write writes to a device and has it synced.
func write(device string, offset int64, data []byte) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, offset)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// read reads what the device has, not what the page cache has.
func read(device string, offset int64, size int) ([]byte, error) {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Pages of the kernel's are aligned as O_DIRECT wants them.
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(p)
	if _, err := f.ReadAt(p, offset); err != nil {
		return nil, err
	}
	return append([]byte(nil), p...), nil
}
