package powercut

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"hayloft/internal/command"
	"hayloft/lab/guest"
)

// subject is one cache of the test, on disks of its own.
type subject struct {
	name, source string
	attach       string // makes path, also after the power was cut
	path         string
	flush        string // has the source get everything
}

const size = 1 << 20 // bytes that are written to

func TestPowerCut(t *testing.T) {
	disk := func(mib int64) guest.Disk { return guest.Disk{Size: mib << 20, Volatile: true} }
	g := guest.ForTest(t, guest.Config{
		Disks: []guest.Disk{disk(8), disk(40), disk(8), disk(40), disk(8), disk(40)},
		Programs: map[string]string{"durable": guest.BuildProgram(t, "hayloft/lab/guest/durable"),
			"attached": guest.BuildProgram(t, "hayloft/disk/kernelcache/powercut/attached")},
	})
	kernels := func(driver, source, local string) subject {
		return subject{name: driver, source: source, path: "/dev/hayloft/cut-" + driver,
			attach: fmt.Sprintf("/programs/attached attach %s %s %s >/dev/null", driver, source, local),
			flush:  fmt.Sprintf("/programs/attached flush %s %s %s", driver, source, local)}
	}
	g.Script(t.Context(), t, "mkfs.ext4 -q /dev/vdg")
	for _, s := range []subject{
		kernels("dm-cache", "/dev/vdb", "/dev/vdc"),
		kernels("bcache", "/dev/vdd", "/dev/vde"),
		{name: "engine", source: "/dev/vdf", path: "/work/fuse/disk",
			attach: `[ -e /work/fuse/disk ] || {
	modprobe -q fuse; mount /dev/vdg /mnt; mkdir -p /mnt/cache
	/programs/attached serve /dev/vdf /mnt/cache /work/fuse >/dev/null &
	for i in $(seq 2400); do [ ! -e /work/fuse/disk ] || break; sleep 0.05; done
}`,
			flush: "kill $(pidof attached); umount -l /work/fuse; /programs/attached settle /dev/vdf /mnt/cache; umount /mnt"},
	} {
		t.Run(s.name, func(t *testing.T) { s.cutTwice(t, g) })
	}
	t.Logf("%.1f s of CPU since the last boot", g.CPUSeconds())
}

// cutTwice cuts the power while something is written, and while nothing is after that: when the cache brings what is dirty
// to the source by itself. It looks for what was acknowledged when the guest runs again.
func (s subject) cutTwice(t *testing.T, g *guest.Guest) {
	for _, idle := range []time.Duration{0, 10 * time.Second} {
		began := time.Now()
		args := fmt.Sprintf(" -size %d -seed %d ", size, rand.IntN(1000))
		count, delay := 30+rand.IntN(100), idle+time.Duration(rand.IntN(20))*time.Millisecond
		script := s.attach + "\nexec /programs/durable write -path " + s.path + args
		if idle > 0 {
			script = fmt.Sprintf("%s\n/programs/durable write -path %s%s| head -n %d; exec sleep 1000", s.attach, s.path, args, count)
		}
		lines, loss, err := g.CutAfter(t.Context(), command.Cmd{Name: "/bin/sh", Args: []string{"-ec", script}}, count, delay)
		if err != nil {
			t.Fatal(err)
		}
		last := lines[len(lines)-1]
		if _, err := strconv.Atoi(last); err != nil {
			t.Fatalf("the writer says %q", last)
		}
		t.Logf("%sgeneration %s; %d sectors not flushed, %d lost", args, last, loss.Unflushed, loss.Lost)
		if err := g.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		args += "-synced " + last
		t.Logf("through the cache: %s", g.Script(t.Context(), t, s.attach+"\nexec /programs/durable verify -path "+s.path+args))
		t.Logf("in the source: %s%.1f s", g.Script(t.Context(), t, s.flush+"\nexec /programs/durable verify -path "+s.source+args), time.Since(began).Seconds())
	}
}
