package qemu

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/device"
	"hayloft/disk/repository/drivers"
	"hayloft/disk/way"
	"hayloft/hypervisor"
	"hayloft/image"
	"hayloft/internal/command"
	"hayloft/lab/golden"
	"hayloft/lab/labtest"
)

const blockdEnv = "HAYLOFT_QEMU_BLOCKD"

// TestBlockdChild is the data path's process of TestMachineOnLazyDisks.
func TestBlockdChild(t *testing.T) {
	dir := os.Getenv(blockdEnv)
	if dir == "" {
		return // run as a test of its own it has nothing to do
	}
	if err := blockd.Run(t.Context(), blockd.RunConfig{Config: blockd.Config{StateDir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}}); err != nil {
		t.Fatal(err)
	}
}

// dataHost is a host with a data path of its own process, and a repository.
type dataHost struct {
	*testing.T
	dir        string
	repository disk.Repository
	client     *blockd.Client
	way        *way.Way
	kills      atomic.Int64
}

func newDataHost(t *testing.T) *dataHost {
	t.Helper()
	h := &dataHost{T: t, dir: filepath.Dir(machineDir(t, 0))}
	h.repository = disk.Repository{ID: 1, Driver: "path", Path: filepath.Join(h.dir, "images")}
	if err := os.Mkdir(h.repository.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(h.dir, "blockd")
	t.Setenv(blockdEnv, state)
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	k, err := blockd.NewKeeper(blockd.KeeperConfig{Executable: os.Args[0], Args: []string{"-test.run=^TestBlockdChild$"}, StateDir: state, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	h.client = k.Client()
	t.Cleanup(func() {
		status, err := h.client.Status(ctx)
		cancel()
		running.Wait()
		if err == nil {
			err = unix.Kill(status.PID, unix.SIGKILL)
		}
		if err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(state, blockd.LogFile))
			t.Logf("data path: %s", text)
		}
	})
	h.way, err = way.New(way.Config{Root: filepath.Join(h.dir, "ls"), GID: 4321, Host: "here", Log: log, Data: h.client, Sockets: filepath.Join(h.dir, "s"), Runner: command.Exec{}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *dataHost) add(id int, name, source string) *disk.Image {
	h.Helper()
	to, err := drivers.Open(h.repository)
	if err != nil {
		h.Fatal(err)
	}
	info, err := image.Import(h.Context(), image.ImportOptions{Source: source, Type: image.OS, To: to, Name: name, Runner: command.Exec{}})
	if err != nil {
		h.Fatal(err)
	}
	return &disk.Image{ID: id, Name: name, Repository: h.repository, Source: name, Format: string(info.Format), Digest: info.Digest, Size: info.Size}
}

// killing kills the data path's process at random moments, each time long enough after it came up for QEMU, which tries
// again after seconds, to have connected; until the returned function is called.
func (h *dataHost) killing() (stop func()) {
	ctx, cancel := context.WithCancel(h.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			status, err := h.client.Status(ctx)
			if err != nil {
				return
			}
			select {
			case <-time.After(time.Second + rand.N(3*time.Second)):
			case <-ctx.Done():
				return
			}
			if err := unix.Kill(status.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				h.Error(err)
			}
			h.kills.Add(1)
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// TestMachineOnLazyDisks: a machine boots from an image that is not here, while the data path's process is killed
// again and again; what it reads and writes is right, and saved it goes on when the image has become whole.
func TestMachineOnLazyDisks(t *testing.T) {
	labtest.Root(t, "qemu-img")
	images, err := golden.Build(t.Context(), golden.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, h := newLab(t), newDataHost(t)
	payload, blank := noise(24<<20), make([]byte, 4<<20)
	for name, content := range map[string][]byte{"payload": payload, "blank": blank} {
		if err := os.WriteFile(filepath.Join(h.dir, name+".raw"), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tiny, data, mine := h.add(1, "tiny", images.Disk), h.add(2, "payload", filepath.Join(h.dir, "payload.raw")), h.add(3, "mine", filepath.Join(h.dir, "blank.raw"))
	mine.Persistent = true

	m := guest(t, 50)
	m.MemoryMB = 96
	m.Boot = hypervisor.Boot{Chipset: "pc"}
	r := disk.Request{Machine: m.ID, Dir: m.Dir, UID: m.UID, GID: m.GID, Disks: []disk.Spec{
		{ID: 0, Image: tiny, NoFill: true}, {ID: 1, Image: data, ReadOnly: true, NoFill: true}, {ID: 2, Image: mine, Mode: "BACK"}}}
	prepare := func() []device.Device {
		t.Helper()
		p, err := h.way.Prepare(t.Context(), r, nil)
		if err != nil {
			t.Fatal(err)
		}
		m.Disks = nil
		for i, dev := range p.Devices {
			m.Disks = append(m.Disks, hypervisor.Disk{ID: i, Target: "vd" + string(rune('a'+i)), Device: dev, Discard: true})
		}
		return p.Devices
	}
	if devices := prepare(); devices[0].Backing == nil || devices[1].Kind != device.NBD || devices[2].Kind != device.NBD {
		t.Fatalf("%+v", devices)
	}
	stop := h.killing()
	defer stop()
	l.bootLinux(m)
	sum := fmt.Sprintf("%x", md5.Sum(payload))
	l.say(m.ID, "echo sum-$(md5sum < /dev/vdb | cut -c1-32)\n", "sum-"+sum)
	written := payload[5<<20 : 8<<20]
	// A quick machine would be done before the second kill.
	for round := 0; round == 0 || round < 100 && h.kills.Load() < 2; round++ {
		l.say(m.ID, fmt.Sprintf("dd if=/dev/vdb of=/dev/vdc bs=64k skip=80 count=48 conv=fsync 2>/dev/null; echo wrote-%d-$?\n", round), fmt.Sprintf("wrote-%d-0", round))
	}
	stop()
	if h.kills.Load() < 2 {
		t.Errorf("killed only %d times", h.kills.Load())
	}
	t.Logf("data path killed %d times", h.kills.Load())
	bases, err := h.way.Bases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bases {
		t.Logf("base %s: %d of %d bytes, complete %v", b.Digest, b.Present, b.Total, b.Complete)
	}

	// Saved, it goes on with the file that has become whole meanwhile, and with its writes.
	saved := filepath.Join(m.Dir, "saved")
	if err := l.d.Save(t.Context(), m.ID, saved); err != nil {
		t.Fatal(err)
	}
	if err := h.way.Prefetch(t.Context(), *tiny, 0, nil); err != nil {
		t.Fatal(err)
	}
	if devices := prepare(); devices[0].Backing != nil {
		t.Errorf("whole, and still %+v", devices[0])
	}
	m.Restore = saved
	if err := l.d.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	l.say(m.ID, "echo 3 > /proc/sys/vm/drop_caches; cat /bin/busybox > /dev/null && echo again-$(dd if=/dev/vdc bs=64k count=48 2>/dev/null | md5sum | cut -c1-32)\n",
		fmt.Sprintf("again-%x", md5.Sum(written)))
	if err := l.d.Kill(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.way.Settle(t.Context(), m.ID, true, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(h.repository.Path, "mine")); err != nil || !bytes.HasPrefix(got, written) {
		t.Errorf("the image has not what was written, %v", err)
	}
	if err := l.d.Remove(t.Context(), m.ID); err != nil {
		t.Error(err)
	}
	if err := h.way.Remove(t.Context(), m.ID, ""); err != nil {
		t.Error(err)
	}
	if s, err := h.client.Status(t.Context()); err != nil || len(s.Exports) != 0 {
		t.Errorf("%+v %v", s.Exports, err)
	}
}
