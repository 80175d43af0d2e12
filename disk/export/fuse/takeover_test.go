package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export/loop"
	"hayloft/lab/labtest"
)

const trap = 1 << 20 // where a survivor's device is not read in the process that will be killed

// trapped calls sprung when it is read at trap.
type trapped struct {
	*ram
	sprung func()
}

func (d *trapped) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if offset == trap && d.sprung != nil {
		d.sprung()
	}
	return d.ram.ReadAt(ctx, p, offset)
}

// addSurvivors adds what both processes serve: a disk with a trap, and an image that is whole.
func addSurvivors(f *FileSystem, whole string, sprung func()) error {
	if whole == "" {
		return nil
	}
	d := &trapped{ram: newRAM(8 << 20), sprung: sprung}
	copy(d.content, random(8<<20))
	if _, err := f.Add("disk", d, Options{}); err != nil {
		return err
	}
	image := newRAM(1 << 20)
	image.readOnly = true
	image.fail(fault.Errorf(fault.Corrupt, "is to be handed through"))
	_, err := f.Add("image", image, Options{Passthrough: func() *os.File { file, _ := os.Open(whole); return file }})
	return err
}

func startChild(t *testing.T, dir, state, whole string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "HAYLOFT_FUSE_CHILD="+dir, "HAYLOFT_FUSE_STATE="+state, "HAYLOFT_FUSE_WHOLE="+whole)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		child.Process.Kill()
		child.Wait()
		if s, err := readState(state, dir); err == nil && s != nil {
			s.Holder.release()
		}
		detach(dir)
	})
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "mounted <nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return child, lines
}

// TestTakeOver: when the process that serves is killed, who has files open only waits for the next: for what the dead
// one had read and not answered, for what was asked meanwhile, and with a loop device on a file too.
func TestTakeOver(t *testing.T) {
	labtest.Root(t, "dd", "sh", "sleep")
	dir, state, whole := filepath.Join(t.TempDir(), "mnt"), filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "whole")
	content := random(1 << 20)
	if err := os.WriteFile(whole, content, 0o440); err != nil {
		t.Fatal(err)
	}
	child, lines := startChild(t, dir, state, whole)
	path := filepath.Join(dir, "disk")
	file, image := open(t, path, os.O_RDWR), open(t, filepath.Join(dir, "image"), os.O_RDONLY)
	tag := "test-takeover-" + filepath.Base(filepath.Dir(state)) + "-" + filepath.Base(filepath.Dir(filepath.Dir(state)))
	if len(tag) > 55 {
		tag = tag[len(tag)-55:]
	}
	device, err := loop.Attach(t.Context(), path, loop.Options{Tag: tag, DirectIO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Detach(context.Background(), device, path, tag)
	if _, err := Mount(t.Context(), Config{Dir: dir, State: state}); !fault.Is(err, fault.Busy) {
		t.Errorf("while the other process lives: %v", err)
	}

	want := random(8 << 20)
	check := func(what string, source io.ReaderAt, offset int64) chan error {
		done := make(chan error, 1)
		go func() {
			p := make([]byte, 4096)
			_, err := source.ReadAt(p, offset)
			if err == nil && !bytes.Equal(p, want[offset:offset+4096]) {
				err = fault.Errorf(fault.Corrupt, "%s: content differs", what)
			}
			done <- err
		}()
		return done
	}
	underWay := check("under way", file, trap)
	if line, err := lines.ReadString('\n'); err != nil || line != "asked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	child.Process.Kill()
	child.Wait()
	block := open(t, device, os.O_RDONLY)
	meanwhile, onDevice := check("meanwhile", file, 4096), check("on the loop device", block, 65536)
	if got, err := io.ReadAll(image); err != nil || !bytes.Equal(got, content) {
		t.Errorf("what is handed through, with nobody there: %d bytes, %v", len(got), err)
	}
	select {
	case err := <-meanwhile:
		t.Errorf("answered by nobody: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	// Whoever looks for a device of their own does not ask this one, which could not tell its name now.
	time.Sleep(1100 * time.Millisecond) // attributes are good for a second
	listed := make(chan error, 1)
	go func() {
		_, err := loop.List(t.Context(), filepath.Dir(state))
		listed <- err
	}()
	select {
	case err := <-listed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(longest):
		t.Error("who lists other devices waits too")
	}

	f, err := Mount(t.Context(), Config{Dir: dir, State: state})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := addSurvivors(f, whole, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.Resume(); err != nil {
		t.Fatal(err)
	}
	for what, done := range map[string]chan error{"under way": underWay, "meanwhile": meanwhile, "on the loop device": onDevice} {
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(longest):
			t.Fatalf("%s: still waiting", what)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !os.IsNotExist(err) {
		t.Errorf("a file that was not added again: %v", err)
	}
	if _, err := file.WriteAt([]byte("new"), 5000); err != nil {
		t.Error(err)
	}
	second := open(t, filepath.Join(dir, "image"), os.O_RDONLY)
	if got, err := io.ReadAll(second); err != nil || !bytes.Equal(got, content) {
		t.Errorf("opened again: %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(add(t, f, "b", newRAM(77), Options{})); err != nil || len(got) != 77 {
		t.Errorf("a new file: %d, %v", len(got), err)
	}
	if err := f.Resume(); err != nil {
		t.Error(err)
	}
	block.Close()
	if err := loop.Detach(t.Context(), device, path, tag); err != nil {
		t.Error(err)
	}
	holder := f.base.Holder
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	until(t, "the holder ends", func() bool { _, err := holder.open(); return fault.Is(err, fault.NotFound) })
	if here, err := mountsAt(dir); err != nil || len(here) != 0 {
		t.Errorf("left: %v, %v", here, err)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("state left: %v", err)
	}
}

// TestTakeOverOfNothing: a state that leads nowhere is a fresh start.
func TestTakeOverOfNothing(t *testing.T) {
	labtest.Root(t, "sh", "sleep")
	for name, spoil := range map[string]func(dir, state string, s *state){
		"holder gone":   func(_, _ string, s *state) { s.Holder.release() },
		"another build": func(_, path string, s *state) { s.Version++; s.write(path) },
		"broken":        func(_, path string, s *state) { os.WriteFile(path, []byte("{"), 0o600); s.Holder.release() },
		"other boot":    func(_, path string, s *state) { s.Boot = "x"; s.write(path); s.Holder.release() },
		"unmounted":     func(dir, _ string, _ *state) { detach(dir) },
		"other process": func(_, path string, s *state) {
			s.Holder.release()
			s.Holder.PID, s.Holder.Start = os.Getpid(), startOf(os.Getpid())
			s.write(path)
		},
		"taken, not run": func(string, string, *state) {},
	} {
		t.Run(name, func(t *testing.T) {
			dir, path := filepath.Join(t.TempDir(), "mnt"), filepath.Join(t.TempDir(), "state")
			child, _ := startChild(t, dir, path, "")
			child.Process.Kill()
			child.Wait()
			s, err := readState(path, dir)
			if err != nil || s == nil {
				t.Fatal(s, err)
			}
			spoil(dir, path, s)
			if name != "unmounted" && name != "another build" && name != "taken, not run" {
				until(t, "the kernel notices", func() bool {
					var st unix.Statfs_t
					return unix.Statfs(dir, &st) == unix.ENOTCONN
				})
			}
			f, err := Mount(t.Context(), Config{Dir: dir, State: path})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if name != "taken, not run" {
				if err := f.Resume(); err != nil {
					t.Error(err)
				}
				if got, err := os.ReadFile(add(t, f, "b", newRAM(77), Options{})); err != nil || len(got) != 77 {
					t.Errorf("%d, %v", len(got), err)
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKilledInItsOwnFile: a process that is killed while it waits for an answer of its own leaves everything to its
// successor, which gives the answer.
func TestKilledInItsOwnFile(t *testing.T) {
	labtest.Root(t, "sh", "sleep")
	dir, state, whole := filepath.Join(t.TempDir(), "mnt"), filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "whole")
	if err := os.WriteFile(whole, random(1<<20), 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HAYLOFT_FUSE_OWN", "1")
	child, lines := startChild(t, dir, state, whole)
	if line, err := lines.ReadString('\n'); err != nil || line != "asked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	ended := make(chan error, 1)
	child.Process.Kill()
	go func() { ended <- child.Wait() }()
	var f *FileSystem
	until(t, "it leaves its lock", func() (ok bool) {
		var err error
		if f, err = Mount(t.Context(), Config{Dir: dir, State: state}); err != nil && !fault.Is(err, fault.Busy) {
			t.Fatal(err)
		}
		return err == nil
	})
	defer f.Close()
	if err := addSurvivors(f, whole, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.Resume(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(longest):
		t.Error("it does not end")
	}
}

// TestUnattended: without a successor, who waits gets errors in the end, and nothing is left by who comes later.
func TestUnattended(t *testing.T) {
	labtest.Root(t, "sh", "sleep")
	dir, state, whole := filepath.Join(t.TempDir(), "mnt"), filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "whole")
	if err := os.WriteFile(whole, random(1<<20), 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HAYLOFT_FUSE_UNATTENDED", "300ms")
	child, _ := startChild(t, dir, state, whole)
	path := filepath.Join(dir, "disk")
	file := open(t, path, os.O_RDWR)
	device, err := loop.Attach(t.Context(), path, loop.Options{Tag: "test-unattended", DirectIO: true})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	child.Process.Kill()
	child.Wait()
	if _, err := file.ReadAt(make([]byte, 10), 0); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Error(err)
	}
	if took := time.Since(began); took < 100*time.Millisecond || took > longest {
		t.Errorf("after %v", took)
	}
	if err := Abandon(t.Context(), dir, state); err != nil {
		t.Error(err)
	}
	if found, err := loop.Find(t.Context(), path, "test-unattended"); !fault.Is(err, fault.NotFound) {
		t.Errorf("%s is left, %v", found, err)
	}
	until(t, device+" is let go of", func() bool { // also by who looks at it just now; its number may be another's by then
		file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
		return err != nil || !strings.HasPrefix(string(file), dir)
	})
	if here, err := mountsAt(dir); err != nil || len(here) != 0 {
		t.Errorf("left: %v, %v", here, err)
	}
	if err := Abandon(t.Context(), dir, state); err != nil {
		t.Errorf("again: %v", err)
	}
}
