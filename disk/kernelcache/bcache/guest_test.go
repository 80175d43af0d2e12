package bcache

import (
	"context"
	"testing"
	"time"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/kernelcachetest"
	"hayloft/disk/kernelcache/mapped"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

func subject(t *testing.T) kernelcachetest.Kernel {
	t.Helper()
	return kernelcachetest.Kernel{
		Disks: labtest.Disks(t, 2),
		Open: func(t *testing.T, run command.Runner) kernelcache.Driver {
			t.Helper()
			d, err := New(kernelcache.Config{Instance: kernelcachetest.Instance, Runner: run, Patience: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Leave: func(t *testing.T, s kernelcache.Spec) {
			t.Helper()
			var k mapped.Kernel
			_, err := mapped.New(kind, kernelcache.Config{Instance: kernelcachetest.Instance}, func(d *mapped.Devices, c kernelcache.Config) mapped.Kernel {
				k = newKernel(d, c)
				return k
			})
			if err == nil {
				err = k.TakeDown(context.Background(), s)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		Mapped: func(s kernelcache.Spec) []string {
			var names []string
			for _, part := range kind.Parts {
				names = append(names, kernelcachetest.Instance+"-"+s.Name+part)
			}
			return names
		},
	}
}

func TestGuestBcacheLife(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Life(t, subject(t))
}

func TestGuestBcacheHost(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Host(t, subject(t))
}

func TestGuestBcacheFaults(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Faults(t, subject(t))
}
