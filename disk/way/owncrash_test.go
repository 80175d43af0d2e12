package way

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/disk"
	"hayloft/disk/localstore/filevolumes"
	"hayloft/internal/command"
)

const volumesCrashEnv = "HAYLOFT_WAY_VOLUMES_CRASH"

// openVolumes begins an agent on a host whose volumes are files, with the driver of such.
func (p crashPlan) openVolumes(t *testing.T) (*Way, func()) {
	t.Helper()
	w, end := p.open(t)
	log := slog.New(slog.DiscardHandler)
	volumes, err := filevolumes.Open(t.Context(), filevolumes.Config{Root: filepath.Join(p.State, "volumes"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	c := w.config
	c.Volumes, c.Runner = volumes, command.Exec{}
	if w, err = New(c); err != nil {
		t.Fatal(err)
	}
	return w, end
}

func (p crashPlan) onVolumes(machine int) disk.Request {
	return disk.Request{Machine: machine, Dir: filepath.Join(p.Run, "m"), UID: os.Getuid(), GID: os.Getgid(),
		Disks: []disk.Spec{{ID: 0, Image: p.Image, Preload: disk.PreloadAuto}, {ID: 1, Image: p.Image, Mode: "OFFLINE"},
			{ID: 2, Volatile: "swap", Size: 64 << 10}, {ID: 3, Volatile: "fs", Size: 64 << 10}}}
}

// TestVolumesCrashChild is the process that TestKilledAnywhereOnVolumes kills.
func TestVolumesCrashChild(t *testing.T) {
	text := os.Getenv(volumesCrashEnv)
	if text == "" {
		return // run as a test of its own it has nothing to do
	}
	var p crashPlan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	for ctx := t.Context(); ; {
		w, end := p.openVolumes(t)
		r := p.onVolumes(1)
		if _, err := w.Prepare(ctx, r, nil); err != nil {
			t.Fatal(err)
		}
		if err := w.Stash(ctx, 1, r.Dir, nil, p.Repository); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Unstash(ctx, r, p.Repository, nil); err != nil {
			t.Fatal(err)
		}
		if err := w.DropStash(ctx, 1, p.Repository); err != nil {
			t.Fatal(err)
		}
		if err := w.Remove(ctx, 1, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := w.evictVolume(ctx, map[string]bool{}); err != nil { // so that it is copied each time
			t.Fatal(err)
		}
		end()
	}
}

// TestKilledAnywhereOnVolumes: wherever a host's agent dies, a machine's disks are right or not there, and Remove takes
// everything but whole bases.
func TestKilledAnywhereOnVolumes(t *testing.T) {
	b := newBench(t, 0)
	content := diskContent()
	p := crashPlan{Root: b.root, Run: b.run, State: t.TempDir(), Repository: b.repository, Image: b.add("tiny", content)}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for range 12 {
		child := exec.Command(os.Args[0], "-test.run=^TestVolumesCrashChild$")
		child.Env = append(os.Environ(), volumesCrashEnv+"="+string(text))
		var out bytes.Buffer
		child.Stdout, child.Stderr = &out, &out
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		delay := 20*time.Millisecond + rand.N(300*time.Millisecond)
		time.Sleep(delay)
		_ = child.Process.Kill()
		if err := child.Wait(); err == nil || out.Len() > 0 {
			t.Fatalf("child: %v\n%s", err, out.String())
		}
		w, end := p.openVolumes(t)
		prepared, err := w.Prepare(ctx, p.onVolumes(1), nil)
		if err != nil {
			t.Fatalf("killed after %v: %v", delay, err)
		}
		if o, err := readOverlay(prepared.Devices[0].Path); err != nil || o.Size != int64(len(content)+511)/512*512 {
			t.Errorf("killed after %v: %+v %v", delay, o, err)
		}
		if got := readFile(t, prepared.Devices[1].Path); !bytes.Equal(got[:len(content)], content) || len(bytes.Trim(got[len(content):], "\x00")) > 0 {
			t.Errorf("killed after %v: the copy is wrong", delay)
		}
		if got := readFile(t, prepared.Devices[2].Path); string(got[4086:4096]) != "SWAPSPACE2" {
			t.Errorf("killed after %v: no swap", delay)
		}
		if got := readFile(t, prepared.Devices[3].Path); len(bytes.Trim(got, "\x00")) > 0 {
			t.Errorf("killed after %v: an empty disk is not", delay)
		}
		if err := w.Remove(ctx, 1, ""); err != nil {
			t.Fatal(err)
		}
		if err := w.DropStash(ctx, 1, p.Repository); err != nil {
			t.Fatal(err)
		}
		list, err := w.config.Volumes.List(ctx)
		if err != nil || len(list) > 1 {
			t.Errorf("killed after %v: left %+v %v", delay, list, err)
		}
		for _, v := range list {
			if got := readFile(t, v.Path); !strings.HasPrefix(v.Name, basePrefix) || strings.HasSuffix(v.Name, partSuffix) || !bytes.Equal(got[:len(content)], content) {
				t.Errorf("killed after %v: %s is not the base", delay, v.Name)
			}
		}
		end()
		b.way = w
		b.nothing()
	}
	if names, err := os.ReadDir(b.repository.Path); err != nil || len(names) != 2 { // tiny, tiny.idx
		t.Errorf("%v %v", names, err)
	}
}
