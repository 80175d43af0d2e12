package dmcache

import (
	"context"
	"testing"
	"time"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/kernelcachetest"
	"hayloft/internal/command"
	"hayloft/internal/dm"
	"hayloft/lab/labtest"
)

const suite = kernelcachetest.Instance

func subject(t *testing.T) kernelcachetest.Kernel {
	t.Helper()
	return kernelcachetest.Kernel{
		Disks: labtest.Disks(t, 2),
		Open: func(t *testing.T, run command.Runner) kernelcache.Driver {
			t.Helper()
			d, err := New(kernelcache.Config{Instance: suite, Runner: run, Patience: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Leave: func(t *testing.T, s kernelcache.Spec) {
			t.Helper()
			tools := dm.Tools{Runner: command.Exec{}}
			for _, part := range []string{"", metaPart, dataPart} {
				if err := tools.Remove(context.Background(), suite+"-"+s.Name+part, "HAYLOFT-dmcache-"+suite+"-"+s.Name+part); err != nil {
					t.Fatal(err)
				}
			}
		},
		Mapped: func(s kernelcache.Spec) []string {
			return []string{suite + "-" + s.Name, suite + "-" + s.Name + metaPart, suite + "-" + s.Name + dataPart}
		},
	}
}

func TestGuestDMCacheLife(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Life(t, subject(t))
}

func TestGuestDMCacheHost(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Host(t, subject(t))
}

func TestGuestDMCacheFaults(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Faults(t, subject(t))
}
