package ownspace

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	t.Run("child", func(t *testing.T) {
		if !Inside() {
			for _, space := range []string{"net", "pid"} {
				link, _ := os.Readlink("/proc/self/ns/" + space)
				t.Setenv("OWNSPACE_"+space, link)
			}
			t.Setenv("OWNSPACE_dir", dir)
		}
		Run(t, Mounts|Network, func(t *testing.T) {
			net, _ := os.Readlink("/proc/self/ns/net")
			pid, _ := os.Readlink("/proc/self/ns/pid")
			if net == os.Getenv("OWNSPACE_net") || pid != os.Getenv("OWNSPACE_pid") {
				t.Errorf("namespaces %s, %s", net, pid)
			}
			dir := os.Getenv("OWNSPACE_dir")
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/x", nil, 0o600); err != nil {
				t.Error(err)
			}
		})
	})
	if e, err := os.ReadDir(dir); err != nil || len(e) != 0 {
		t.Error(e, err)
	}
}
