package bcache

import (
	"context"
	"testing"
	"time"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/kernelcachetest"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

func kernel(t *testing.T) kernelcachetest.Kernel {
	t.Helper()
	open := func(t *testing.T, run command.Runner) kernelcache.Driver {
		t.Helper()
		d, err := New(Config{Instance: kernelcachetest.Instance, Runner: run, Patience: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return kernelcachetest.Kernel{
		Disks: labtest.Disks(t, 2),
		Open:  open,
		Leave: func(t *testing.T, s kernelcache.Spec) {
			t.Helper()
			if err := open(t, nil).(*Driver).takeDown(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		},
		Mapped: func(s kernelcache.Spec) []string {
			var names []string
			for _, part := range parts {
				names = append(names, kernelcachetest.Instance+"-"+s.Name+part)
			}
			return names
		},
	}
}

func TestGuestBcacheLife(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Life(t, kernel(t))
}

func TestGuestBcacheHost(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Host(t, kernel(t))
}

func TestGuestBcacheFaults(t *testing.T) {
	labtest.Guest(t)
	kernelcachetest.Faults(t, kernel(t))
}
