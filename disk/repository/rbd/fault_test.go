package rbd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/lab/cephlab"
)

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
			r.limit = patience
			if row.name == "nobody there" {
				r.limit = time.Second
			}
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
		})
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
	quick.limit = unanswered
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
	allBounded(t, fault.Unavailable,
		attempt{"read", func() error { _, err := s2.ReadAt(make([]byte, 1000), 0); return err }},
		attempt{"write", func() error { _, err := w.WriteAt(make([]byte, 1000), 5); return err }},
		attempt{"clone", func() error { _, _, err := quick.CreateFrom(t.Context(), "a", "b"); return err }},
		attempt{"open", func() error { _, err := quick.Open(t.Context(), "a"); return err }},
		attempt{"read that is left", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := r.Open(ctx, "a")
			return err
		}})
	if err := c.Continue("osd"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
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
	r.limit = unanswered
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := c.End("osd"); err != nil {
		t.Fatal(err)
	}
	allBounded(t, fault.Unavailable,
		attempt{"read", func() error { _, err := s.ReadAt(make([]byte, 5), 0); return err }},
		attempt{"stat", func() error { _, err := r.Stat(t.Context(), "a"); return err }},
		attempt{"create", func() error { _, err := r.Create(t.Context(), "b"); return err }})
	p := make([]byte, 5)
	if err := c.StartOSD(); err != nil {
		t.Fatal(err)
	}
	again(t, "read", func() error { _, err := s.ReadAt(p, 0); return err })
	if string(p) != "hello" {
		t.Errorf("%q", p)
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
	quick := *r
	quick.limit = 2 * time.Second
	for _, kill := range []bool{false, true} {
		if kill {
			c.Kill("mon")
		} else if err := c.Stop("mon"); err != nil {
			t.Fatal(err)
		}
		bounded(t, "open", fault.Unavailable, func() error { _, err := quick.Open(t.Context(), "a"); return err })
		bounded(t, "capacity", fault.Unavailable, func() error { _, err := quick.Capacity(t.Context()); return err })
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
	r.limit = 2 * unanswered
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
	for n := int64(0); err == nil; n++ { // it takes a moment to be found full; ends with the test's limit
		_, err = w.WriteAt(p, n%128*4<<20)
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
