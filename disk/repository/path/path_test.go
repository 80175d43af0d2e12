package path

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/lab/labtest"
)

func open(t *testing.T, dir string) *Repository {
	t.Helper()
	r, err := New(disk.Repository{ID: 7, Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestConformance(t *testing.T) {
	repositorytest.Run(t, func(t *testing.T) repository.Repository { return open(t, t.TempDir()) })
}

func TestUnreachable(t *testing.T) {
	if _, err := New(disk.Repository{ID: 7, Path: "relative"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	dir := filepath.Join(t.TempDir(), "gone")
	r := open(t, dir)
	_, err1 := r.Open(t.Context(), "a")
	_, err2 := r.Create(t.Context(), "a")
	_, err3 := r.List(t.Context(), "")
	_, err4 := r.Capacity(t.Context())
	for _, err := range []error{err1, err2, err3, err4, r.Delete(t.Context(), "a")} {
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "datastore 7 ("+dir+")") {
			t.Errorf("%v", err)
		}
	}
}

// TestLinksDoNotLeadOut: a link somebody put into the directory is not followed.
func TestLinksDoNotLeadOut(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Symlink(outside+"/secret", dir+"/a")
	_ = os.Symlink(outside, dir+"/d")
	_ = unix.Mkfifo(dir+"/pipe", 0o600)
	r := open(t, dir)
	for _, name := range []string{"a", "d/secret", "pipe"} {
		if s, err := r.Open(t.Context(), name); err == nil {
			s.Close()
			t.Errorf("opened %s", name)
		}
	}
	if _, err := r.Create(t.Context(), "d/x"); err == nil {
		t.Error("wrote through a link")
	}
	if list, err := r.List(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

func TestWriterThatDiedGivesWay(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{".a.part", ".a.lock"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w, err := open(t, dir).Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/a"); err != nil || len(b) != 0 {
		t.Errorf("%q %v", b, err)
	}
	if e, _ := os.ReadDir(dir); len(e) != 1 {
		t.Errorf("%v", e)
	}
}

// TestHangingStorage: a mount that does not answer costs workers, never the caller.
func TestHangingStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate("datastore 7 (/nfs)")
		answer := make(chan struct{})
		hang := func() error { <-answer; return nil }
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := g.run(ctx, hang)
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "datastore 7") || time.Since(begin) != time.Second {
			t.Errorf("deadline: %v after %v", err, time.Since(begin))
		}
		ctx2, cancel2 := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel2)
		if err := g.run(ctx2, hang); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		for range maxHanging - 2 {
			go g.run(t.Context(), hang)
		}
		synctest.Wait()
		begin = time.Now()
		if err := g.run(t.Context(), func() error { t.Error("ran beyond the bound"); return nil }); !fault.Is(err, fault.Unavailable) || time.Since(begin) > 2*defaultLimit {
			t.Errorf("full: %v after %v", err, time.Since(begin))
		}
		close(answer)
		synctest.Wait()
		if err := g.run(t.Context(), func() error { return nil }); err != nil {
			t.Errorf("after it answered: %v", err)
		}
	})
}

func TestOneOwner(t *testing.T) {
	labtest.Root(t)
	dir := t.TempDir()
	r := open(t, dir)
	w, err := r.Create(t.Context(), "p")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	me, other := repository.Owner{Host: "h1", Machine: 1}, repository.Owner{Host: "h2", Machine: 2}
	for range 2 {
		if path, err := r.Own(t.Context(), "p", me, 1001, 1002); err != nil || path != dir+"/p" {
			t.Fatal(path, err)
		}
	}
	var st unix.Stat_t
	if unix.Stat(dir+"/p", &st); st.Uid != 1001 || st.Gid != 1002 || st.Mode&0o777 != 0o600 {
		t.Errorf("%d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	_, err = r.Own(t.Context(), "p", other, 1, 1)
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "machine 1 on host h1") {
		t.Error(err)
	}
	if err := r.Delete(t.Context(), "p"); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	if err := errors.Join(r.Disown(t.Context(), "p", other), r.Disown(t.Context(), "p", me), r.Disown(t.Context(), "p", me)); err != nil {
		t.Error(err)
	}
	if unix.Stat(dir+"/p", &st); st.Uid != 0 || st.Gid != 0 || st.Mode&0o777 != 0o640 {
		t.Errorf("given back as %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	if _, err = r.Own(t.Context(), "p", other, 1, 1); err != nil {
		t.Error(err)
	}
}

func TestSweepTakesOnlyTheDead(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	w, err := r.Create(t.Context(), "m/living")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"/d/.dead.part", "/d/.dead.lock", "/m/.dead.part", "/.other.part"} {
		if err := os.WriteFile(dir+f, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(r.Sweep(t.Context(), "m/"), r.Sweep(t.Context(), "d/")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/.other.part"); err != nil {
		t.Error("went beyond the prefix")
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left []string
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, _ error) error { left = append(left, p[len(dir):]); return nil })
	if len(left) != 3 || left[2] != "/m/living" {
		t.Errorf("%q", left)
	}
}

func TestSweepOfAFolder(t *testing.T) {
	dir := t.TempDir()
	r, err := New(disk.Repository{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"machines/1/deep", "machines/2", "others"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, prefix := range []string{"", "machines/1/"} {
		if err := r.Sweep(t.Context(), prefix); err != nil {
			t.Fatal(err)
		}
	}
	for folder, there := range map[string]bool{"machines/1": false, "machines/2": true, "others": true} {
		if _, err := os.Stat(filepath.Join(dir, folder)); (err == nil) != there {
			t.Errorf("%s: %v", folder, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "machines/2")); err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(t.Context(), "machines/"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "machines")); !os.IsNotExist(err) {
		t.Error(err)
	}
}
