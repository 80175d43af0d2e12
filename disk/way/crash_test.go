package way

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/device"
	"hayloft/internal/command"
)

// crashPlan is what the child does over and over until it is killed.
type crashPlan struct {
	Root, Run, State string
	Repository       disk.Repository
	Image, Mine      *disk.Image
}

const crashEnv = "HAYLOFT_WAY_CRASH"

func (p crashPlan) request(machine int) disk.Request {
	return disk.Request{Machine: machine, Dir: filepath.Join(p.Run, "m"), UID: os.Getuid(), GID: os.Getgid(),
		Disks: []disk.Spec{{ID: 0, Volatile: "fs", Size: 64 << 10}, {ID: 1, Image: p.Image, ReadOnly: true, Preload: disk.PreloadAuto},
			{ID: 2, Image: p.Mine, Mode: "BACK"}}}
}

// lazy is a second machine's disk on a base that is not here.
func (p crashPlan) lazy() disk.Request {
	return disk.Request{Machine: 2, Dir: filepath.Join(p.Run, "l"), UID: os.Getuid(), GID: os.Getgid(),
		Disks: []disk.Spec{{ID: 0, Image: p.Image, Mode: "THRU", Preload: 64 << 10}}}
}

var content = noise(64<<10, 77)

// TestCrashChild is the process that TestKilledAnywhere kills.
func TestCrashChild(t *testing.T) {
	text := os.Getenv(crashEnv)
	if text == "" {
		return // run as a test of its own it has nothing to do
	}
	var p crashPlan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	for ctx := t.Context(); ; {
		w, end := p.open(t)
		r := p.request(1)
		if _, err := w.Prepare(ctx, p.lazy(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Unstash(ctx, r, p.Repository, nil); err != nil {
			t.Fatal(err)
		}
		if err := w.Remove(ctx, 2, ""); err != nil {
			t.Fatal(err)
		}
		if err := w.DropStash(ctx, 1, p.Repository); err != nil {
			t.Fatal(err)
		}
		if err := w.Stash(ctx, 1, r.Dir, nil, p.Repository); err != nil {
			t.Fatal(err)
		}
		end()
		_ = os.RemoveAll(filepath.Join(p.Root, "base")) // so that it is fetched each time
	}
}

// open begins agent and data path, which die together.
func (p crashPlan) open(t *testing.T) (*Way, func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	data, err := blockd.New(blockd.Config{StateDir: p.State, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{Root: p.Root, Runner: command.Exec{}, Log: log, GID: os.Getgid(), Host: "here", Data: data, Sockets: filepath.Join(p.Run, "s")})
	if err != nil {
		t.Fatal(err)
	}
	return w, func() {
		if err := data.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestKilledAnywhere: wherever a host's agent dies, the machine's disk is whole, here or in the stash, and a base
// is right or not there.
func TestKilledAnywhere(t *testing.T) {
	b := newBench(t, 0)
	p := crashPlan{Root: b.root, Run: b.run, State: t.TempDir(), Repository: b.repository, Image: b.add("tiny", diskContent()), Mine: b.image("mine", 4)}
	p.Mine.Persistent = true
	ctx := context.Background()
	d := b.prepare(p.request(1)).Devices[0]
	if err := os.WriteFile(d.Path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.way.Stash(ctx, 1, p.request(1).Dir, nil, b.repository); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for range 12 {
		child := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
		child.Env = append(os.Environ(), crashEnv+"="+string(text))
		var out bytes.Buffer
		child.Stdout, child.Stderr = &out, &out
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		delay := 20*time.Millisecond + rand.N(250*time.Millisecond)
		time.Sleep(delay)
		_ = child.Process.Kill()
		if err := child.Wait(); err == nil || out.Len() > 0 {
			t.Fatalf("child: %v\n%s", err, out.String())
		}
		w, end := p.open(t)
		prepared, err := w.Unstash(ctx, p.request(1), b.repository, nil)
		if fault.Is(err, fault.NotFound) { // not stashed: it must be here
			prepared, err = w.Prepare(ctx, p.request(1), nil)
		}
		if err != nil {
			t.Fatalf("killed after %v: %v", delay, err)
		}
		disk0, err1 := os.ReadFile(prepared.Devices[0].Path)
		base, err2 := os.ReadFile(prepared.Devices[1].Path)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(disk0, content) || !bytes.Equal(base, diskContent()) {
			t.Fatalf("killed after %v: disk whole %v, base whole %v, %v", delay, bytes.Equal(disk0, content), bytes.Equal(base, diskContent()), err)
		}
		if p := prepared.Devices[2]; p.Kind != device.NBD {
			t.Errorf("%+v", p)
		}
		if lazy, err := w.Prepare(ctx, p.lazy(), nil); err != nil {
			t.Fatalf("killed after %v: %v", delay, err)
		} else if o, err := readOverlay(lazy.Devices[0].Path); err != nil || o.Size != int64(len(diskContent())+511)/512*512 {
			t.Errorf("killed after %v: %+v %v", delay, o, err)
		}
		if err := errors.Join(w.Remove(ctx, 2, ""), w.Stash(ctx, 1, p.request(1).Dir, nil, p.Repository)); err != nil {
			t.Fatal(err)
		}
		if s, err := w.config.Data.Status(ctx); err != nil || len(s.Exports) != 0 {
			t.Errorf("killed after %v: exports left: %+v %v", delay, s.Exports, err)
		}
		end()
		b.way = w
		b.nothing()
	}
	if err := b.way.DropStash(ctx, 1, b.repository); err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(b.repository.Path)
	if err != nil || len(names) != 4 { // tiny, tiny.idx, mine, mine.idx
		t.Errorf("%v %v", names, err)
	}
}
