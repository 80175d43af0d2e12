package way

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/lab/labtest"
)

// restart ends the data path and the way, and begins them again, as an upgrade of both does.
func (b *bench) restart(dir string) {
	b.Helper()
	if b.daemon != nil {
		if err := b.daemon.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.daemon = newDaemon(b.T, dir, func(r disk.Repository) (repository.Repository, error) { return b.open0(r) })
	b.reopen(0)
}

func patternFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// qemuIOOn runs qemu-io on what QEMU finds out about by itself.
func qemuIOOn(t *testing.T, source string, commands ...string) {
	t.Helper()
	var args []string
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, source)...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("verification failed")) || bytes.Contains(out, []byte("failed:")) {
		t.Fatalf("qemu-io %s %v: %v\n%s", source, commands, err, out)
	}
}

// qemuAbove runs qemu-io's commands on an overlay whose base is exported, in QEMU itself: only that can be told.
func qemuAbove(t *testing.T, overlay, socket string, commands ...string) {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults", "-monitor", "stdio",
		"-blockdev", `{"driver":"raw","node-name":"below","read-only":true,"file":{"driver":"nbd","read-only":true,"server":{"type":"unix","path":"`+socket+`"}}}`,
		"-blockdev", `{"driver":"qcow2","node-name":"top","backing":"below","file":{"driver":"file","filename":"`+overlay+`"}}`)
	var input strings.Builder
	for _, c := range commands {
		input.WriteString("qemu-io top \"" + c + "\"\n")
	}
	input.WriteString("quit\n")
	cmd.Stdin = strings.NewReader(input.String())
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) || bytes.Count(out, []byte(" ops;")) < len(commands) {
		t.Fatalf("qemu-io %s %v: %v\n%s", overlay, commands, err, out)
	}
}

func convert(t *testing.T, source, target string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", source, target).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert %s: %v\n%s", source, err, out)
	}
}

// specOf is a base as the data path knows it.
func (b *bench) specOf(img *disk.Image) blockd.BaseSpec {
	b.Helper()
	path, err := b.way.store.Path(img.Digest, localstore.Data)
	if err != nil {
		b.Fatal(err)
	}
	return blockd.BaseSpec{Image: *img, Dir: filepath.Dir(path), GID: os.Getgid()}
}

func overNBD(socket string) string { return "nbd+unix:///?socket=" + socket }

// TestMachineOnPartialBase: a disk that is used, saved, grown and stashed before its image has arrived is right.
func TestMachineOnPartialBase(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	b := newBench(t, 0)
	state := t.TempDir()
	b.restart(state)
	content := noise(3<<20, 5)
	img := b.add("tiny", content)
	spec := disk.Spec{Image: img, Size: 4 << 20, Mode: "THRU", NoFill: true}
	r := b.request(1)
	r.Disks = []disk.Spec{spec, {ID: 1, Image: img, ReadOnly: true, NoFill: true}}
	p := b.prepare(r)
	socket := p.Devices[0].Backing.Path
	want := func(size int, at int64, text string) []byte {
		all := append(bytes.Clone(content), make([]byte, size-len(content))...)
		copy(all[at:], text)
		return all
	}
	read := func(source string, want []byte) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		convert(t, source, out)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: not what was written (%d bytes instead of %d), %v", source, len(got), len(want), err)
		}
	}
	qemuAbove(t, p.Devices[0].Path, socket, "write -s "+patternFile(t, "mine"+string(bytes.Repeat([]byte{0}, 508)))+" 1M 512")
	bases, _ := b.way.Bases(t.Context())
	if len(bases) != 1 || bases[0].Complete || bases[0].Present == 0 || bases[0].Present > 256<<10 || bases[0].Total != 3<<20 {
		t.Errorf("after one write: %+v", bases)
	}
	b.restart(state)
	if again := b.prepare(r); again.Devices[0].Backing == nil || again.RepositoryBytes != 0 {
		t.Errorf("%+v", again)
	}
	mine := "mine" + string(bytes.Repeat([]byte{0}, 508))
	saved, err := b.way.SaveAs(t.Context(), 1, "", spec, b.repository, "saved", nil)
	if err != nil || saved.Size != 4<<20 {
		t.Fatal(saved, err)
	}
	if got, err := os.ReadFile(b.repository.Path + "/saved"); err != nil || !bytes.Equal(got, want(4<<20, 1<<20, mine)) {
		t.Errorf("saved disk differs, %v", err)
	}
	if _, err := b.way.SaveAs(t.Context(), 1, "", r.Disks[1], b.repository, "copy", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(b.repository.Path + "/copy"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("saved read-only disk differs, %v", err)
	}
	// All was read by now: it is whole as soon as that is noticed, and the machine needs no export any more.
	if _, err := b.way.completed(t.Context(), b.specOf(img)); err != nil {
		t.Fatal(err)
	}
	b.unused()
	if p := b.prepare(r); p.Devices[0].Backing != nil {
		t.Errorf("%+v", p.Devices[0])
	}
	if s, _ := b.daemon.Status(t.Context()); len(s.Exports) != 0 {
		t.Errorf("%+v", s.Exports)
	}
	read(p.Devices[0].Path, want(4<<20, 1<<20, mine))
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.nothing()
}

// TestStashOnPartialBase takes a machine whose image never arrived to another host, where it does not arrive either.
func TestStashOnPartialBase(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	b, other := newBench(t, 0), newBench(t, 0)
	img := b.add("tiny", noise(3<<20, 5))
	other.repository = b.repository
	r := b.request(1)
	r.Disks = []disk.Spec{{Image: img, NoFill: true, Size: 4 << 20}}
	p := b.prepare(r)
	qemuAbove(t, p.Devices[0].Path, p.Devices[0].Backing.Path, "write -P 9 64k 64k")
	if err := b.way.Resize(t.Context(), 1, "", 0, 5<<20); err != nil {
		t.Fatal(err)
	}
	if err := b.way.Stash(t.Context(), 1, b.dir(1), nil, b.repository); err != nil {
		t.Fatal(err)
	}
	b.nothing()
	r.Dir = other.dir(1)
	back, err := other.way.Unstash(t.Context(), r, b.repository, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := back.Devices[0]
	if o, err := readOverlay(d.Path); err != nil || o.Size != 5<<20 || filepath.Dir(filepath.Dir(filepath.Dir(o.Backing))) != other.root {
		t.Errorf("%+v %v", o, err)
	}
	qemuAbove(t, d.Path, d.Backing.Path, "read -P 9 64k 64k", "read -P 0 4M 1M")
}

// TestVolumesWithTheRealDataPath: in each mode, what a machine wrote is in the image after Settle, across
// restarts of both, growth, saving and a change of mode.
func TestVolumesWithTheRealDataPath(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-io")
	for _, mode := range []string{"AROUND", "THRU", "BACK", "OFFLINE"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t, 0)
			state := t.TempDir()
			b.restart(state)
			s := b.mine(mode)
			s.Preload = 1 << 20
			r := b.request(1)
			r.Disks = []disk.Spec{s}
			socket := b.prepare(r).Devices[0].Path
			qemuIOOn(t, overNBD(socket), "write -P 7 64k 64k", "flush", "write -P 8 1M 64k", "flush")
			b.restart(state)
			if d := b.prepare(r).Devices[0]; d.Path != socket {
				t.Errorf("%+v", d)
			}
			qemuIOOn(t, overNBD(socket), "read -P 7 64k 64k", "read -P 8 1M 64k")
			if err := b.way.Resize(t.Context(), 1, "", 0, 3<<20); err != nil {
				t.Fatal(err)
			}
			qemuIOOn(t, overNBD(socket), "read -P 7 64k 64k", "read -P 0 2M 1M", "write -P 9 2M 64k", "flush")
			saved, err := b.way.SaveAs(t.Context(), 1, "", s, b.repository, "saved", nil)
			if err != nil || saved.Size != 3<<20 {
				t.Fatal(saved, err)
			}
			if err := b.way.Settle(t.Context(), 1, true, nil); err != nil {
				t.Fatal(err)
			}
			mine, err1 := os.ReadFile(b.repository.Path + "/mine")
			copied, err2 := os.ReadFile(b.repository.Path + "/saved")
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			mine = append(mine, make([]byte, max(0, 3<<20-len(mine)))...)
			if !bytes.Equal(mine, copied) || mine[64<<10] != 7 || mine[1<<20] != 8 || mine[2<<20] != 9 {
				t.Error("image and saved disk are not what was written")
			}
			caches, err := b.way.Caches(t.Context(), 1)
			if err != nil || len(caches) != 1 || caches[0].Undrained != 0 || caches[0].Mode != mode || caches[0].Total != 3<<20 || caches[0].Error != "" {
				t.Errorf("%+v %v", caches, err)
			}
			qemuIOOn(t, overNBD(socket), "write -P 5 192k 64k", "flush")
			r.Disks[0].Mode = "NONE"
			d := b.prepare(r).Devices[0]
			if d.Path != b.repository.Path+"/mine" {
				t.Errorf("%+v", d)
			}
			qemuIO(t, d.Path, "raw", "read -P 5 192k 64k", "write -P 6 256k 64k")
			r.Disks[0].Mode = mode
			qemuIOOn(t, overNBD(b.prepare(r).Devices[0].Path), "read -P 6 256k 64k", "read -P 5 192k 64k", "write -P 4 0 64k")
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Fatal(err)
			}
			b.nothing()
			qemuIO(t, b.repository.Path+"/mine", "raw", "read -P 4 0 64k", "read -P 6 256k 64k")
			if _, err := b.open().(repository.Writable).Marked(t.Context(), "mine"); !fault.Is(err, fault.NotFound) {
				t.Errorf("still owned: %v", err)
			}
		})
	}
}

// TestAnotherHostWaitsForTheWrites: an image with undrained writes opens nowhere else.
func TestAnotherHostWaitsForTheWrites(t *testing.T) {
	labtest.Root(t, "qemu-io")
	b, other := newBench(t, 0), newBench(t, 0)
	s := b.mine("OFFLINE")
	socket := b.prepare(b.request(1, s)).Devices[0].Path
	qemuIOOn(t, overNBD(socket), "write -P 7 64k 64k", "flush")
	other.way.config.Host = "there"
	if _, err := other.way.Prepare(t.Context(), other.request(1, s), nil); !fault.Is(err, fault.Busy) {
		t.Errorf("%v", err)
	}
	other.nothing()
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Fatal(err)
	}
	qemuIOOn(t, overNBD(other.prepare(other.request(1, s)).Devices[0].Path), "read -P 7 64k 64k")
}

// TestStartsWithTheRepositoryGone: what is here is enough for a machine that had its disks before.
func TestStartsWithTheRepositoryGone(t *testing.T) {
	labtest.Root(t, "qemu-io")
	b := newBench(t, 0)
	state := t.TempDir()
	b.restart(state)
	mine := b.mine("OFFLINE")
	lazy := b.add("tiny", noise(1<<20, 5))
	r := b.request(1)
	r.Disks = []disk.Spec{mine, {ID: 1, Image: lazy, Preload: 512 << 10, NoFill: true}}
	p := b.prepare(r)
	qemuIOOn(t, overNBD(p.Devices[0].Path), "write -P 7 64k 64k", "flush")
	away := b.repository.Path + ".away"
	if err := os.Rename(b.repository.Path, away); err != nil {
		t.Fatal(err)
	}
	b.restart(state)
	again := b.prepare(r)
	qemuIOOn(t, overNBD(again.Devices[0].Path), "read -P 7 64k 64k", "write -P 8 1M 64k", "flush")
	qemuAbove(t, again.Devices[1].Path, again.Devices[1].Backing.Path, "read 0 512k")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := b.way.Remove(ctx, 1, ""); err == nil {
		t.Error("removed with writes that are nowhere else")
	}
	if m, _ := b.way.Machines(t.Context()); len(m) != 1 {
		t.Errorf("%v", m)
	}
	if err := os.Rename(away, b.repository.Path); err != nil {
		t.Fatal(err)
	}
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Fatal(err)
	}
	b.nothing()
	qemuIO(t, b.repository.Path+"/mine", "raw", "read -P 7 64k 64k", "read -P 8 1M 64k")
}
