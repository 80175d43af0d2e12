package rbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/lab/cephlab"
)

func class(t *testing.T, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

// written makes an object.
func written(t *testing.T, r *Repository, name, content string) {
	t.Helper()
	w, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, r *Repository, name string) string {
	t.Helper()
	s, err := r.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, s.Size())
	if _, err := s.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// admin runs rbd in the repository's namespace as the cluster's administrator.
func admin(t *testing.T, r *Repository, args ...string) string {
	t.Helper()
	return must(t, "rbd", append([]string{"--pool", r.pool, "--namespace", r.namespace}, args...)...)
}

// children are the ids of this process's children that run QEMU.
func children(t *testing.T) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			name, _ := os.ReadFile("/proc/" + field + "/comm")
			var pid int
			if fmt.Sscan(field, &pid); strings.HasPrefix(string(name), "qemu-storage") {
				found[pid] = true
			}
		}
	}
	return found
}

// TestForeign: images of others are left alone, whatever is asked for.
func TestForeign(t *testing.T) {
	r := empty(t)
	written(t, r, "ours", "hello")
	admin(t, r, "create", "--image", "theirs", "--size", "1M")
	admin(t, r, "cp", "--image", "ours", "--dest-pool", r.pool, "--dest-namespace", r.namespace, "--dest", "copied", "--no-progress")
	admin(t, r, "create", "--image", partOf("new"), "--size", "1M")
	before := admin(t, r, "ls", "-l", "--format", "json")
	owner := repository.Owner{Host: "h", Machine: 1}
	for _, name := range []string{"theirs", "copied"} {
		_, err := r.Create(t.Context(), name)
		class(t, "create", err, fault.Busy)
		_, err = r.Open(t.Context(), name)
		class(t, "open", err, fault.Busy)
		_, err = r.Stat(t.Context(), name)
		class(t, "stat", err, fault.Busy)
		err = r.Delete(t.Context(), name)
		class(t, "delete", err, fault.Busy)
		if !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "not Hayloft's") {
			t.Error(err)
		}
		_, err = r.Own(t.Context(), name, owner, 0, 0)
		class(t, "own", err, fault.Busy)
		class(t, "break", r.Break(t.Context(), name, true), fault.Busy)
		_, _, err = r.CreateFrom(t.Context(), name, "clone")
		class(t, "clone", err, fault.Busy)
		class(t, "flatten", r.Flatten(t.Context(), name), fault.Busy)
	}
	_, err := r.Create(t.Context(), "new")
	class(t, "create over what looks unfinished", err, fault.Busy)
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	list, err := r.List(t.Context(), "")
	if err != nil || len(list) != 1 || list[0].Name != "ours" {
		t.Errorf("%v, %v", list, err)
	}
	if after := admin(t, r, "ls", "-l", "--format", "json"); after != before {
		t.Errorf("%s, before %s", after, before)
	}
	admin(t, r, "snap", "create", "--no-progress", "--image", "ours", "--snap", "backup")
	err = r.Delete(t.Context(), "ours")
	class(t, "delete with a snapshot of others", err, fault.Busy)
	if err == nil || !strings.Contains(err.Error(), "backup") || content(t, r, "ours") != "hello" {
		t.Error(err)
	}
	admin(t, r, "snap", "rm", "--no-progress", "--image", "ours", "--snap", "backup")
	if err := r.Delete(t.Context(), "ours"); err != nil {
		t.Error(err)
	}
}

// TestNoEntrance: what is wrong with credentials and addresses is said, and nothing hangs.
func TestNoEntrance(t *testing.T) {
	c := ceph(t)
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf := file("nobody.conf", "[global]\nmon host = [v2:127.0.0.1:1]\nauth client required = cephx\n", 0o600)
	other := file("other", "[client.hayloft]\n\tkey = "+cephlab.NewKey()+"\n", 0o600)
	public, err := os.ReadFile(shared.keyring)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, path, says string
		options          map[string]string
		want             fault.Class
	}{
		{"another key", "rbd", "", map[string]string{"CEPH_KEYRING": other}, fault.Permission},
		{"unknown user", "rbd", "", map[string]string{"CEPH_USER": "nobody"}, fault.Permission},
		{"no keyring", "rbd", "none", map[string]string{"CEPH_KEYRING": dir + "/none"}, fault.Permission},
		{"no pool", "nope", "nope", nil, fault.Unavailable},
		{"no namespace", "rbd/nope", "nope", nil, fault.Unavailable},
		{"nobody there", "rbd", "", map[string]string{"CEPH_CONF": conf}, fault.Unavailable},
		{"keyring for all to read", "rbd", "0644", map[string]string{"CEPH_KEYRING": file("public", string(public), 0o644)}, fault.Permission},
	} {
		t.Run(row.name, func(t *testing.T) {
			options := map[string]string{"CEPH_CONF": c.Conf, "CEPH_USER": "hayloft", "CEPH_KEYRING": shared.keyring}
			for k, v := range row.options {
				options[k] = v
			}
			r, err := New(disk.Repository{ID: 7, Path: row.path, Options: options})
			if err != nil {
				t.Fatal(err)
			}
			r.limit = 3 * time.Second
			if row.name == "nobody there" {
				r.limit = time.Second
			}
			begun := time.Now()
			_, err = r.Create(t.Context(), "a")
			class(t, "create", err, row.want)
			if err == nil || !strings.Contains(err.Error(), "datastore 7") || !strings.Contains(err.Error(), row.says) {
				t.Error(err)
			}
			_, err = r.Stat(t.Context(), "a")
			class(t, "stat", err, row.want)
			_, err = r.List(t.Context(), "")
			class(t, "list", err, row.want)
			_, err = r.Capacity(t.Context())
			if row.want == fault.Permission || row.name == "no pool" {
				class(t, "capacity", err, row.want)
			}
			if took := time.Since(begun); took > 40*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// bounded runs f, which must end by itself with an error of class want long before minutes have passed.
func bounded(t *testing.T, what string, want fault.Class, f func() error) {
	t.Helper()
	begun := time.Now()
	err := f()
	class(t, what, err, want)
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("%s took %v", what, took)
	}
}

// TestOSDHangs, in the middle of a read, a write, a clone; when it is back, all goes on.
func TestOSDHangs(t *testing.T) {
	c := ceph(t)
	r := empty(t)
	written(t, r, "a", strings.Repeat("x", 1<<20))
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	quick := *r
	quick.limit = time.Second
	w, err := quick.Create(t.Context(), "w")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	s2, err := quick.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	if err := c.Stop("osd"); err != nil {
		t.Fatal(err)
	}
	defer c.Continue("osd")
	p := make([]byte, 1000)
	bounded(t, "read", fault.Unavailable, func() error { _, err := s2.ReadAt(p, 0); return err })
	bounded(t, "write", fault.Unavailable, func() error { _, err := w.WriteAt(p, 5); return err })
	bounded(t, "clone", fault.Unavailable, func() error { _, _, err := quick.CreateFrom(t.Context(), "a", "b"); return err })
	bounded(t, "open", fault.Unavailable, func() error { _, err := quick.Open(t.Context(), "a"); return err })
	bounded(t, "read that is left", fault.Unavailable, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := r.Open(ctx, "a")
		return err
	})
	if err := c.Continue("osd"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.ReadAt(p, 0); n != len(p) || err != nil {
		t.Error(n, err)
	}
	if n, err := s2.ReadAt(p, 0); n != len(p) || err != nil {
		t.Error(n, err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("abort: %v", err)
	}
	clone, _, err := r.CreateFrom(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := clone.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if content(t, r, "b") != strings.Repeat("x", 1<<20) {
		t.Error("the clone is different")
	}
}

// TestOSDGone: as above, with nobody at the address for a while.
func TestOSDGone(t *testing.T) {
	c := ceph(t)
	r := empty(t)
	written(t, r, "a", "hello")
	r.limit = 2 * time.Second
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := c.End("osd"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	bounded(t, "read", fault.Unavailable, func() error { _, err := s.ReadAt(p, 0); return err })
	bounded(t, "stat", fault.Unavailable, func() error { _, err := r.Stat(t.Context(), "a"); return err })
	bounded(t, "create", fault.Unavailable, func() error { _, err := r.Create(t.Context(), "b"); return err })
	if err := c.StartOSD(); err != nil {
		t.Fatal(err)
	}
	again(t, "read", func() error { _, err := s.ReadAt(p, 0); return err })
	if string(p) != "hello" {
		t.Errorf("%q", p)
	}
}

// again repeats what must work soon.
func again(t *testing.T, what string, f func() error) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begun) > time.Minute {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestMonitorGone: what is open goes on, nothing is opened, until it is back.
func TestMonitorGone(t *testing.T) {
	c := ceph(t)
	r := empty(t)
	written(t, r, "a", "hello")
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r.limit = 2 * time.Second
	for _, kill := range []bool{false, true} {
		if kill {
			c.Kill("mon")
		} else if err := c.Stop("mon"); err != nil {
			t.Fatal(err)
		}
		bounded(t, "open", fault.Unavailable, func() error { _, err := r.Open(t.Context(), "a"); return err })
		bounded(t, "capacity", fault.Unavailable, func() error { _, err := r.Capacity(t.Context()); return err })
		p := make([]byte, 5)
		if n, err := s.ReadAt(p, 0); n != 5 || err != nil || string(p) != "hello" {
			t.Errorf("what is open: %d, %v", n, err)
		}
		if kill {
			err = c.StartMonitor()
		} else {
			err = c.Continue("mon")
		}
		if err != nil {
			t.Fatal(err)
		}
		again(t, "stat", func() error { _, err := r.Stat(t.Context(), "a"); return err })
	}
}

// TestPoolFull: writes to a pool over its quota would wait for ever.
func TestPoolFull(t *testing.T) {
	c := ceph(t)
	if err := c.CreatePool(t.Context(), "small"); err != nil {
		t.Fatal(err)
	}
	r, err := New(disk.Repository{ID: 7, Path: "small", Options: map[string]string{"CEPH_CONF": c.Conf, "CEPH_USER": "hayloft", "CEPH_KEYRING": shared.keyring}})
	if err != nil {
		t.Fatal(err)
	}
	r.limit = 5 * time.Second
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.SetSize(1 << 30); err != nil {
		t.Fatal(err)
	}
	must(t, "ceph", "osd", "pool", "set-quota", "small", "max_bytes", fmt.Sprint(4<<20))
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i)
	}
	for offset := int64(0); offset < 1<<29; offset += 4 << 20 { // it takes a moment to be found full
		if _, err = w.WriteAt(p, offset); err != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	class(t, "write", err, fault.OutOfSpace)
	if err == nil || !strings.Contains(err.Error(), "object a") || !strings.Contains(err.Error(), "small is full") {
		t.Error(err)
	}
	if space, err := r.Capacity(t.Context()); err != nil || space.Total != 4<<20 || space.Free != 0 {
		t.Errorf("%+v, %v", space, err)
	}
	must(t, "ceph", "osd", "pool", "set-quota", "small", "max_bytes", "0")
	if err := w.Abort(); err != nil {
		again(t, "sweep", func() error { return r.Sweep(t.Context(), "") })
	}
}

// TestDeadHost: what the child of a killed host sent does not arrive after another one has taken the image, and the
// other one need not wait.
func TestDeadHost(t *testing.T) {
	r := empty(t)
	written(t, r, "d/p", strings.Repeat("x", 8192))
	one, two := repository.Owner{Host: "one", Machine: 1}, repository.Owner{Host: "two", Machine: 2}
	if _, err := r.Own(t.Context(), "d/p", one, 0, 0); err != nil {
		t.Fatal(err)
	}
	before := children(t)
	old, _, err := r.OpenTarget(t.Context(), "d/p", one)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := old.WriteAt([]byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	for pid := range children(t) { // hangs, with a write in it
		if !before[pid] {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer syscall.Kill(pid, syscall.SIGCONT)
			before[pid] = true
			late := make(chan error)
			go func() {
				_, err := old.WriteAt([]byte("late"), 0)
				late <- err
			}()
			begun := time.Now()
			if err := r.Break(t.Context(), "d/p", true); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Own(t.Context(), "d/p", two, 0, 0); err != nil {
				t.Fatal(err)
			}
			s, _, err := r.OpenTarget(t.Context(), "d/p", two)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.WriteAt([]byte("two!"), 0); err != nil {
				t.Fatal(err)
			}
			t.Logf("taken and written after %v", time.Since(begun))
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			class(t, "the late write", <-late, fault.Busy)
			class(t, "sync", old.Sync(), fault.Busy)
			if err := s.Sync(); err != nil {
				t.Error(err)
			}
			p := make([]byte, 4)
			if _, err := s.ReadAt(p, 0); err != nil || string(p) != "two!" {
				t.Errorf("%q, %v", p, err)
			}
		}
	}
}

// TestChildKilled: a source goes on, a target is opened again without waiting for the dead one's watch to end.
func TestChildKilled(t *testing.T) {
	r := empty(t)
	written(t, r, "p", "hello")
	owner := repository.Owner{Host: "one", Machine: 1}
	if _, err := r.Own(t.Context(), "p", owner, 0, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		before := children(t)
		s, _, err := r.OpenTarget(t.Context(), "p", owner)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		begun := time.Now()
		if _, err := s.WriteAt([]byte("J"), 0); err != nil {
			t.Fatal(err)
		}
		t.Logf("first write after %v", time.Since(begun))
		for pid := range children(t) {
			if !before[pid] {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		again(t, "notice", func() error {
			if _, err := s.WriteAt([]byte("K"), 0); !fault.Is(err, fault.Unavailable) {
				return errors.New("it lives")
			}
			return nil
		})
		var notBegun *repository.NotBegun
		if err := s.Sync(); !errors.As(err, &notBegun) {
			t.Errorf("sync: %v", err)
		}
	}
	if got := content(t, r, "p"); got != "Jello" && got != "Kello" {
		t.Error(got)
	}
}

// TestDeadWriter: while a writer may live nobody touches what it writes; then anybody may remove it.
func TestDeadWriter(t *testing.T) {
	r := empty(t)
	written(t, r, "from", strings.Repeat("x", 5000))
	before := children(t)
	w, err := r.Create(t.Context(), "d/a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	c, _, err := r.CreateFrom(t.Context(), "from", "d/b")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, r, "ls"); len(strings.Fields(got)) != 3 {
		t.Errorf("after a sweep over living writers there is %q", got)
	}
	for pid := range children(t) {
		if !before[pid] {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	again(t, "sweep", func() error {
		if err := r.Sweep(t.Context(), "d/"); err != nil {
			t.Fatal(err)
		}
		if got := admin(t, r, "ls"); got != "from" {
			return fmt.Errorf("there is %q", got)
		}
		return nil
	})
	if got := admin(t, r, "snap", "ls", "--image", "from"); got != "" {
		t.Errorf("snapshots: %s", got)
	}
	written(t, r, "d/a", "again")
}

// TestLeftSnapshots: what died between a snapshot and its clone is removed when it is old enough to be dead.
func TestLeftSnapshots(t *testing.T) {
	r := empty(t)
	written(t, r, "a", strings.Repeat("x", 5000))
	young := fmt.Sprintf("%s%d.1", clonePrefix, time.Now().Unix())
	for _, snapshot := range []string{clonePrefix + "1700000000.1", young, "theirs"} {
		admin(t, r, "snap", "create", "--no-progress", "--image", "a", "--snap", snapshot)
	}
	admin(t, r, "snap", "protect", "--image", "a", "--snap", clonePrefix+"1700000000.1")
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, r, "snap", "ls", "--image", "a"); strings.Contains(got, "1700000000") || !strings.Contains(got, young) || !strings.Contains(got, "theirs") {
		t.Error(got)
	}
}

// TestDeleteWhileRead: the name is free at once, the reader reads on, and the space comes back with a sweep.
func TestDeleteWhileRead(t *testing.T) {
	r := empty(t)
	written(t, r, "a", "hello")
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := s.ReadAt(p, 0); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	written(t, r, "a", "there")
	if got := content(t, r, "a"); got != "there" {
		t.Error(got)
	}
	s.Close()
	if err := r.Sweep(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, r, "ls"); got != "a" {
		t.Errorf("there is %q", got)
	}
}

// TestSnapshotsGo: a parent has no snapshot that no clone needs.
func TestSnapshotsGo(t *testing.T) {
	r := empty(t)
	written(t, r, "a", strings.Repeat("x", 5000))
	for _, name := range []string{"b", "c"} {
		w, kind, err := r.CreateFrom(t.Context(), "a", name)
		if err != nil || kind != repository.RBDClone {
			t.Fatal(kind, err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	snapshots := func() int { return strings.Count(admin(t, r, "snap", "ls", "--image", "a"), clonePrefix) }
	if n := snapshots(); n != 2 {
		t.Errorf("%d snapshots", n)
	}
	if err := r.Flatten(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if n := snapshots(); n != 1 {
		t.Errorf("%d snapshots", n)
	}
	if err := r.Delete(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if n := snapshots(); n != 0 {
		t.Errorf("%d snapshots", n)
	}
}
