package blockd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/export/loop"
	"hayloft/lab/labtest"
)

// TestFileAndBlockDevice: the same bytes as a file and as a block device, also after the process died; then nothing
// is left.
func TestFileAndBlockDevice(t *testing.T) {
	labtest.Root(t)
	b := newBench(t)
	want := content(20*chunk, 1)
	img := b.image(3, "tiny", want)
	mine, text := b.persistent("mine", 2)
	file, device := b.baseExport("1.0", img), b.volumeExport("1.1", mine, cache.Through)
	file.Kind, device.Kind = FUSE, Loop
	k, stop := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	c := k.Client()
	must(t, c.Export(t.Context(), file))
	must(t, c.Export(t.Context(), device))
	defer func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_ = errors.Join(c.Unexport(ctx, "1.0"), c.Unexport(ctx, "1.1"))
		}
	}()
	for round := range 2 {
		if got, err := os.ReadFile(file.Path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the file differs, %v", err)
		}
		if s := exportOf(t, c, "1.1"); s.Device == "" || s.Error != "" {
			t.Errorf("%+v", s)
		}
		f, err := os.OpenFile(device.Path, os.O_RDWR, 0)
		must(t, err)
		got := make([]byte, len(text))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, text) {
			t.Errorf("the device differs, %v", err)
		}
		copy(text[chunk:], content(chunk, 9))
		if _, err := f.WriteAt(text[chunk:2*chunk], chunk); err != nil {
			t.Error(err)
		}
		must(t, f.Sync())
		signal := []unix.Signal{unix.SIGKILL, unix.SIGTERM}[round]
		end(t, statusOf(t, c).PID, signal)
		if n, err := f.ReadAt(got, 0); n != len(got) || err != nil || !bytes.Equal(got, text) {
			t.Errorf("the device that was open reads %d bytes after %v, %v", n, signal, err)
		}
		copy(text[5*chunk:], content(chunk, uint64(20+round)))
		if _, err := f.WriteAt(text[5*chunk:6*chunk], 5*chunk); err != nil {
			t.Error(err)
		}
		must(t, errors.Join(f.Sync(), f.Close())) // which the next process answers
		eventually(t, "both again", func() bool {
			return exportOf(t, c, "1.0").Error == "" && exportOf(t, c, "1.1").Error == "" && exportOf(t, c, "1.1").Device != ""
		})
	}
	must(t, c.Settle(t.Context(), "1.1", nil))
	if !bytes.Equal(b.inRepository(mine), text) {
		t.Error("the image in the repository differs")
	}
	must(t, c.Discard(t.Context(), "1.1"))
	must(t, c.Unexport(t.Context(), "1.0"))
	if exists(file.Path) || exists(device.Path) {
		t.Error("links left")
	}
	pid := statusOf(t, c).PID
	stop()
	end(t, pid, unix.SIGTERM)
	if exists(b.config.StateDir + ".files") {
		t.Error("mount point left")
	}
}

// TestEndsWithRequestsUnderWay: the process ends soon when it is asked to, also while who reads a file or block device
// waits for a repository that is away; the next one answers them.
func TestEndsWithRequestsUnderWay(t *testing.T) {
	labtest.Root(t)
	b := newBench(t)
	k, _ := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	c := k.Client()
	var readers []func() error
	for i, kind := range []Kind{FUSE, Loop} {
		want := content(20*chunk, uint64(i+1))
		e := b.baseExport(fmt.Sprintf("1.%d", i), b.image(3+i, fmt.Sprintf("tiny-%d", i), want))
		e.Kind = kind
		must(t, c.Export(t.Context(), e))
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := c.Unexport(ctx, e.Name); err != nil {
				t.Error(err)
			}
		}()
		f, err := os.Open(e.Path)
		must(t, err)
		defer f.Close()
		readers = append(readers, func() error {
			got := make([]byte, chunk)
			_, err := f.ReadAt(got, 7*chunk)
			if err == nil && !bytes.Equal(got, want[7*chunk:8*chunk]) {
				err = errors.New("other bytes")
			}
			return err
		})
	}
	must(t, os.Rename(b.repo.Path, b.repo.Path+".away"))
	done := make(chan error, len(readers))
	for _, read := range readers {
		go func() { done <- read() }()
	}
	eventually(t, "both wait", func() bool {
		text, _ := os.ReadFile(filepath.Join(b.config.StateDir, LogFile))
		return bytes.Count(text, []byte("repository is unavailable")) >= len(readers)
	})
	end(t, statusOf(t, c).PID, unix.SIGTERM) // or they would wait for as long as the repository is away
	must(t, os.Rename(b.repo.Path+".away", b.repo.Path))
	for range readers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestDetachAll: of an export nothing stays attached, also when a process that was killed had attached a second device.
func TestDetachAll(t *testing.T) {
	labtest.Root(t)
	dir, tag := t.TempDir(), fmt.Sprintf("test-%d-all", os.Getpid())
	path, link := filepath.Join(dir, "file"), filepath.Join(dir, "link") // the second is not known for the same
	must(t, errors.Join(os.WriteFile(path, make([]byte, chunk), 0o600), os.Symlink(path, link)))
	other := filepath.Join(dir, "other")
	t.Cleanup(func() { // when the test has failed
		_ = detachAll(context.Background(), "", path, tag)
		_ = detachAll(context.Background(), "", link, tag)
		_ = detachAll(context.Background(), "", other, tag+"-other")
	})
	first, err := loop.Attach(t.Context(), path, loop.Options{Tag: tag})
	must(t, err)
	if second, err := loop.Attach(t.Context(), link, loop.Options{Tag: tag}); err != nil || second == first {
		t.Fatal(second, err)
	}
	must(t, detachAll(t.Context(), first, path, tag))
	if found, err := loop.Find(t.Context(), path, tag); !fault.Is(err, fault.NotFound) {
		t.Errorf("%s is left, %v", found, err)
	}
	// The number that is remembered is another's by now.
	must(t, os.WriteFile(other, make([]byte, chunk), 0o600))
	theirs, err := loop.Attach(t.Context(), other, loop.Options{Tag: tag + "-other"})
	must(t, err)
	_, err = loop.Attach(t.Context(), path, loop.Options{Tag: tag})
	must(t, err)
	must(t, detachAll(t.Context(), theirs, path, tag))
	if found, err := loop.Find(t.Context(), path, tag); !fault.Is(err, fault.NotFound) {
		t.Errorf("%s is left, %v", found, err)
	}
	if found, err := loop.Find(t.Context(), other, tag+"-other"); err != nil || found != theirs {
		t.Errorf("another's device: %s, %v", found, err)
	}
	must(t, loop.Detach(t.Context(), theirs, other, tag+"-other"))
}
