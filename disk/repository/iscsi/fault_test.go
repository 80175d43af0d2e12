package iscsi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/command"
	"hayloft/internal/lvm"
	"hayloft/lab/sshlab"
)

var alice = repository.Owner{Host: "host-one", Machine: 1}

// written makes an object.
func written(t *testing.T, r *Repository, name, content string) {
	t.Helper()
	w, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.SetSize(int64(len(content))); err != nil {
		t.Fatal(err)
	}
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
	b, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// bounded runs f, which must end by itself with an error of class want.
func bounded(t *testing.T, what string, want fault.Class, f func() error) {
	t.Helper()
	begun := time.Now()
	err := f()
	class(t, what, err, want)
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("%s took %v", what, took)
	}
}

// inUseAll is a repository in use in all ways.
type inUseAll struct {
	source repository.Source
	writer repository.Writer
	target repository.Target
}

func inUseBy(t *testing.T, r *Repository) inUseAll {
	t.Helper()
	written(t, r, "a", strings.Repeat("x", 1<<20))
	written(t, r, "p", strings.Repeat("p", 1<<20))
	if _, err := r.Own(t.Context(), "p", alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	var u inUseAll
	var err error
	if u.source, err = r.Open(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if u.writer, err = r.Create(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if _, err := u.writer.WriteAt([]byte("begun"), 0); err != nil {
		t.Fatal(err)
	}
	if u.target, _, err = r.OpenTarget(t.Context(), "p", alice); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.source.Close(); u.target.Close(); u.writer.Abort() })
	return u
}

// TestTgtdHangs, in the middle of a read, a write, a clone; when it is back, all goes on.
func TestTgtdHangs(t *testing.T) {
	s, r := thick(t)
	r.limit = time.Second
	u := inUseBy(t, r)
	s.tgt.Stop()
	defer s.tgt.Continue()
	p := make([]byte, 1000)
	bounded(t, "read", fault.Unavailable, func() error { _, err := u.source.ReadAt(p, 0); return err })
	bounded(t, "write", fault.Unavailable, func() error { _, err := u.writer.WriteAt(p, 5); return err })
	bounded(t, "write to an image", fault.Unavailable, func() error { _, err := u.target.WriteAt(p, 5); return err })
	bounded(t, "open", fault.Unavailable, func() error { _, err := r.Open(t.Context(), "a"); return err })
	bounded(t, "clone and write", fault.Unavailable, func() error {
		w, _, err := r.CreateFrom(t.Context(), "a", "b")
		if err != nil {
			return err
		}
		defer w.Abort()
		_, err = w.WriteAt(p, 0)
		return err
	})
	bounded(t, "open that is left", fault.Unavailable, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := r.Open(ctx, "a")
		return err
	})
	s.tgt.Continue()
	if n, err := u.source.ReadAt(p, 0); n != len(p) || err != nil {
		t.Error(n, err)
	}
	class(t, "commit of what may be lost", u.writer.Commit(t.Context()), fault.Unavailable)
	if err := u.writer.Abort(); err != nil {
		t.Error(err)
	}
	written(t, r, "w", "again")
	written(t, r, "b", "b")
	if got := content(t, r, "w") + content(t, r, "b"); got != "againb" {
		t.Error(got)
	}
}

// TestTgtdDies and comes back without targets: readers go on, writers know that they do not.
func TestTgtdDies(t *testing.T) {
	s, r := thick(t)
	r.limit = 2 * time.Second
	u := inUseBy(t, r)
	if _, err := u.target.WriteAt([]byte("acknowledged"), 10); err != nil {
		t.Fatal(err)
	}
	s.tgt.Kill()
	p := make([]byte, 1000)
	bounded(t, "read", fault.Unavailable, func() error { _, err := u.source.ReadAt(p, 0); return err })
	bounded(t, "open", fault.Unavailable, func() error {
		_, err := r.Open(t.Context(), "a")
		if err != nil && (!strings.Contains(err.Error(), "tgtd does not run") || !strings.Contains(err.Error(), "datastore 7")) {
			t.Error(err)
		}
		return err
	})
	if info, err := r.Stat(t.Context(), "a"); err != nil || info.Size != 1<<20 {
		t.Errorf("what needs no target: %+v, %v", info, err)
	}
	if err := s.tgt.Restart(); err != nil {
		t.Fatal(err)
	}
	if n, err := u.source.ReadAt(p, 0); n != len(p) || err != nil || p[0] != 'x' {
		t.Error(n, err)
	}
	bounded(t, "write", fault.Unavailable, func() error { _, err := u.writer.WriteAt(p, 5); return err })
	bounded(t, "write to an image", fault.Unavailable, func() error { _, err := u.target.WriteAt(p, 5); return err })
	class(t, "commit", u.writer.Commit(t.Context()), fault.Unavailable)
	if err := u.writer.Abort(); err != nil {
		t.Error(err)
	}
	u.target.Close()
	again, _, err := r.OpenTarget(t.Context(), "p", alice)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.ReadAt(p, 0); err != nil || !bytes.HasPrefix(p[10:], []byte("acknowledged")) {
		t.Errorf("%q, %v", p[:30], err)
	}
	u.source.Close()
	again.Close()
	clean(t, s)
}

// storageDaemons are the children of this process that run QEMU's.
func storageDaemons(t *testing.T) []int {
	t.Helper()
	var all []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, f := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(f)
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if strings.HasPrefix(string(name), "qemu-storage") {
				all = append(all, pid)
			}
		}
	}
	return all
}

// TestSyncWithoutAChild: the server makes durable what our own child wrote, unless it was started anew meanwhile.
func TestSyncWithoutAChild(t *testing.T) {
	for _, rebooted := range []bool{false, true} {
		s, r := thick(t)
		written(t, r, "p", "persistent")
		if _, err := r.Own(t.Context(), "p", alice, 0, 0); err != nil {
			t.Fatal(err)
		}
		target, _, err := r.OpenTarget(t.Context(), "p", alice)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := target.WriteAt([]byte("PERSIST"), 0); err != nil {
			t.Fatal(err)
		}
		children := storageDaemons(t)
		if len(children) != 1 {
			t.Fatal(children)
		}
		if err := syscall.Kill(children[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for len(storageDaemons(t)) > 0 { // ends with the test's limit
			time.Sleep(time.Millisecond)
		}
		if _, err := target.ReadAt(make([]byte, 1), 0); err == nil { // a sync is not begun when it is known that the child is gone
			t.Fatal("a child that was killed answers")
		}
		var synced []string
		s.before = func(cmd command.Cmd) error {
			if cmd.Name == "sync" {
				synced = append(synced, cmd.Args...)
			}
			if cmd.Name == "cat" && rebooted {
				return fault.Errorf(fault.Unavailable, "it boots")
			}
			return nil
		}
		err = target.Sync()
		var notBegun *repository.NotBegun
		if !rebooted {
			if err != nil || len(synced) != 1 || synced[0] != s.Path(objectPrefix+"p") {
				t.Error(synced, err)
			}
		} else {
			if !errors.As(err, &notBegun) {
				t.Errorf("of a server that is away: %v", err)
			}
			target.(*persistent).boot = "before"
			s.before = nil
			if err = target.Sync(); !fault.Is(err, fault.Unavailable) || errors.As(err, &notBegun) || !strings.Contains(err.Error(), "started anew") {
				t.Errorf("of a server that forgot: %v", err)
			}
		}
		target.Close()
		if got := content(t, r, "p"); got != "PERSISTent" {
			t.Error(got)
		}
		clean(t, s)
	}
}

func TestCHAP(t *testing.T) {
	s, _ := thick(t)
	if err := s.tgt.Account("hayloft", "a long password"); err != nil {
		t.Fatal(err)
	}
	file := func(text string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	right := s.repository(t, map[string]string{"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": file("a long password\n", 0o600)})
	written(t, right, "a", "secret")
	if got := content(t, right, "a"); got != "secret" {
		t.Error(got)
	}
	for name, options := range map[string]map[string]string{
		"wrong password":  {"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": file("another password\n", 0o600)},
		"unknown account": {"CHAP_USER": "nobody", "CHAP_PASSWORD_FILE": file("a long password\n", 0o600)},
		"for all to read": {"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": file("a long password\n", 0o644)},
		"no file":         {"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": "/none"},
	} {
		_, err := s.repository(t, options).Open(t.Context(), "a")
		class(t, name, err, fault.Permission)
		if err != nil && (strings.Contains(err.Error(), "a long") || strings.Contains(err.Error(), "another") || !strings.Contains(err.Error(), "datastore 7")) {
			t.Error(err)
		}
	}
	clean(t, s)
}

// TestFull: a group without room.
func TestFull(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", strings.Repeat("x", 1<<20))
	w, err := r.Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	class(t, "set size", w.SetSize(testSize), fault.OutOfSpace)
	_, err = w.WriteAt([]byte("far"), testSize)
	class(t, "write", err, fault.OutOfSpace)
	if _, err := w.WriteAt([]byte("near"), testSize/2); err != nil { // more would not be had
		t.Error(err)
	}
	_, _, err = r.CreateFrom(t.Context(), "b", "c")
	class(t, "clone of what is not there", err, fault.NotFound)
	if _, err := r.Own(t.Context(), "a", alice, 0, 0); err != nil {
		t.Fatal(err)
	}
	target, _, err := r.OpenTarget(t.Context(), "a", alice)
	if err != nil {
		t.Fatal(err)
	}
	class(t, "longer image", target.Truncate(testSize), fault.OutOfSpace)
	if n, err := target.ReadAt(make([]byte, 10), 0); n != 10 || err != nil || target.Size() != 1<<20 {
		t.Error(n, err)
	}
	target.Close()
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	clean(t, s)
	if c, err := r.Capacity(t.Context()); err != nil || c.Used > 2<<20 || c.Total != testSize {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestForeign: a volume with a name of ours, of somebody else's, is never touched.
func TestForeign(t *testing.T) {
	s, r := thick(t)
	tools := lvm.Tools{Runner: s.Host}
	for _, name := range []string{objectPrefix + "a", partPrefix + "b", deadPrefix + "x"} {
		if err := tools.Create(t.Context(), lvm.New{Group: testGroup, Name: name, Size: 1 << 20, Tags: []string{"theirs"}}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.Open(t.Context(), "a")
	class(t, "open", err, fault.Busy)
	_, err = r.Stat(t.Context(), "a")
	class(t, "stat", err, fault.Busy)
	for _, name := range []string{"a", "b"} {
		_, err = r.Create(t.Context(), name)
		class(t, "create "+name, err, fault.Busy)
	}
	class(t, "delete", r.Delete(t.Context(), "a"), fault.Busy)
	_, err = r.Own(t.Context(), "a", alice, 0, 0)
	class(t, "own", err, fault.Busy)
	_, _, err = r.CreateFrom(t.Context(), "a", "c")
	class(t, "clone", err, fault.Busy)
	if all, err := r.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	all, err := tools.Volumes(t.Context(), testGroup)
	if err != nil || len(all) != 3 {
		t.Error(all, err)
	}
	for _, v := range all {
		b, err := os.ReadFile(s.Path(v.Name))
		if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{0xEE}, 1<<20)) || len(v.Tags) != 1 {
			t.Errorf("%s was changed: %v", v.Name, err)
		}
	}
}

// TestDeadWriter: what one leaves gives way to the next, and is swept; one that lives is left alone, and one that was
// taken for dead cannot commit.
func TestDeadWriter(t *testing.T) {
	s, r := thick(t)
	r.lease, r.limit = 2*time.Second, 2*time.Second
	living, err := r.Create(t.Context(), "living")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := living.WriteAt([]byte("alive"), 0); err != nil {
		t.Fatal(err)
	}
	var dead []*writer
	for _, name := range []string{"a", "b", "z/c"} {
		w, err := r.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt([]byte("lost"), 0); err != nil {
			t.Fatal(err)
		}
		silent := w.(*writer) // it gives no sign of life any more
		silent.cancel()
		silent.renewals.Wait()
		silent.ctx = context.Background()
		dead = append(dead, silent)
	}
	_, err = r.Create(t.Context(), "a")
	class(t, "while it may live", err, fault.Busy)
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
	}
	written(t, r, "a", "taken over")
	if err := r.Sweep(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	all, err := lvm.Tools{Runner: s.Host}.Volumes(t.Context(), testGroup)
	var names []string
	for _, v := range all {
		names = append(names, v.Name)
	}
	if text := strings.Join(names, " "); err != nil || strings.Contains(text, partPrefix+"b") || !strings.Contains(text, partPrefix+"z+c") || !strings.Contains(text, partPrefix+"living") {
		t.Error(text, err)
	}
	for _, w := range dead[:2] {
		err := w.Commit(t.Context())
		if !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unavailable) {
			t.Errorf("the dead commits: %v", err)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
	if err := living.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if got := content(t, r, "a") + content(t, r, "living"); got != "taken overalive" {
		t.Error(got)
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	dead[2].Abort()
	clean(t, s)
}

// TestDeletedWhileRead: who reads goes on; the space comes back by Sweep.
func TestDeletedWhileRead(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", "hello")
	source, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	p := make([]byte, 5)
	if _, err := source.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	s.before = func(cmd command.Cmd) error { // the volume is open, as LVM would see
		if cmd.Name == "lvremove" {
			return &command.Error{Cmd: cmd, Status: 5, Stderr: "  Logical volume vg/x in use.\n"}
		}
		return nil
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.before = nil
	written(t, r, "a", "other")
	if _, err := source.ReadAt(p, 0); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	source.Close()
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if got := content(t, r, "a"); got != "other" {
		t.Error(got)
	}
	clean(t, s)
}

// TestHalfMadeTargets: an opening that fails in the middle leaves none.
func TestHalfMadeTargets(t *testing.T) {
	s, r := thick(t)
	written(t, r, "a", "hello")
	for _, step := range []string{"new --mode logicalunit", "update", "bind"} {
		s.before = func(cmd command.Cmd) error {
			if strings.Contains(cmd.String(), "--op "+step) {
				return &command.Error{Cmd: cmd, Status: 22, Stderr: "tgtadm: invalid request\n"}
			}
			return nil
		}
		_, err := r.Open(t.Context(), "a")
		class(t, step, err, fault.Unavailable)
		clean(t, s)
	}
	s.before = nil
	// Of one that died, Sweep takes what is old, and not of others.
	old := r.name(place{reading, fingerprint("x"), 0, 1, "0"})
	for id, name := range map[string]string{"5": old, "6": "iqn.2026-01.org.other:x"} {
		if _, err := s.tgt.Tgtadm("--op", "new", "--mode", "target", "--tid", id, "-T", name); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if all, err := r.targets(t.Context()); err != nil || len(all) != 1 || all[0].name != "iqn.2026-01.org.other:x" {
		t.Error(all, err)
	}
}

// TestWriterAgainstModel writes here and there, several at once, grows and cuts, on what others left.
func TestWriterAgainstModel(t *testing.T) {
	s, r := thick(t)
	random := rand.New(rand.NewPCG(1, 2))
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var model []byte
	resize := func(size int) {
		if size > len(model) {
			model = append(model, make([]byte, size-len(model))...)
		}
	}
	for range 12 {
		var group sync.WaitGroup
		base := random.IntN(3 << 20)
		for range 4 {
			p := bytes.Repeat([]byte{byte(1 + random.IntN(255))}, 1+random.IntN(150_000))
			at := base
			base += len(p) + random.IntN(100_000)
			resize(at + len(p))
			copy(model[at:], p)
			group.Go(func() {
				if _, err := w.WriteAt(p, int64(at)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if random.IntN(3) == 0 {
			size := random.IntN(len(model) + 100_000)
			if err := w.SetSize(int64(size)); err != nil {
				t.Fatal(err)
			}
			resize(size)
			model = model[:size:size]
		}
	}
	got := make([]byte, len(model))
	if n, err := w.ReadAt(got, 0); n != len(got) || err != nil || !bytes.Equal(got, model) {
		t.Errorf("the writer reads differently: %d, %v", n, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if content(t, r, "a") != string(model) {
		t.Error("the object is different")
	}
	b, err := os.ReadFile(s.Path(objectPrefix + "a"))
	if err != nil || !bytes.Equal(b[len(model):], make([]byte, len(b)-len(model))) {
		t.Errorf("the end of the volume shows what was there before, %v", err)
	}
	clean(t, s)
}

// TestThickToThin: a datastore got a pool later. What its thick images are cloned to is copied, without their holes.
func TestThickToThin(t *testing.T) {
	s, r := thick(t)
	text := "begin" + strings.Repeat("\x00", 2<<20) + "end"
	written(t, r, "a", text)
	if err := (lvm.Tools{Runner: s.Host}).CreatePool(t.Context(), lvm.NewPool{Group: testGroup, Name: "pool", Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	later := s.repository(t, map[string]string{"POOL": "pool"})
	clone(t, later, "a", "b", repository.Copied)
	clone(t, later, "b", "c", repository.ThinClone)
	for _, name := range []string{"a", "b", "c"} {
		if content(t, later, name) != text {
			t.Errorf("%s is different", name)
		}
	}
	_, err := s.repository(t, map[string]string{"POOL": "none"}).Create(t.Context(), "d")
	class(t, "no such pool", err, fault.Unavailable)
	_, err = s.repository(t, map[string]string{"POOL": objectPrefix + "a"}).Create(t.Context(), "d")
	class(t, "what is no pool", err, fault.Unsupported)
	clean(t, s)
}

// TestOverSSH: the storage server is another host, whose LVM is played.
func TestOverSSH(t *testing.T) {
	server := sshlab.Start(t)
	s, _ := thick(t)
	options := server.Options()
	options["PORTAL"] = s.tgt.Portal
	r := s.repository(t, options)
	s.rest = s.tgt.Runner(r.host.(command.Runner))
	written(t, r, "d/a", "over two networks")
	w, kind, err := r.CreateFrom(t.Context(), "d/a", "b") // dd runs over there
	if err != nil || kind != repository.Copied {
		t.Fatal(kind, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := content(t, r, "b"); got != "over two networks" {
		t.Error(got)
	}
	source, err := r.Open(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	p := make([]byte, 4)
	if n, err := source.ReadAt(p, 0); n != 4 || err != nil {
		t.Errorf("reading needs only the target: %d, %v", n, err)
	}
	bounded(t, "open", fault.Unavailable, func() error { _, err := r.Open(t.Context(), "b"); return err })
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	if got := content(t, r, "d/a"); got != "over two networks" {
		t.Error(got)
	}
	clean(t, s)
}
