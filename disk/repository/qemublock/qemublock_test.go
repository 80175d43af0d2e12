package qemublock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// file is a Node that only tests have: a file that the child may open.
type file struct{ path string }

type fileOptions struct {
	common
	Filename string `json:"filename"`
}

func (f file) check() error { return nil }
func (f file) options(s *supplies, c common) any {
	c.Cache = nil
	if s.dir.uid >= 0 {
		s.err = errors.Join(os.Chown(f.path, s.dir.uid, s.dir.uid), os.Chmod(filepath.Dir(f.path), 0o755), os.Chmod(filepath.Dir(filepath.Dir(f.path)), 0o755))
	}
	return fileOptions{c.of("file"), f.path}
}

func fileOf(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, o Options) *Disk {
	t.Helper()
	if o.Label == "" {
		o.Label = "object a"
	}
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dir := ""
		d.mu.RLock() // it may fall asleep
		if d.child != nil {
			dir = d.child.dir.path
		}
		d.mu.RUnlock()
		d.Close()
		if _, err := os.Stat(dir); dir != "" && err == nil {
			t.Errorf("%s is still there", dir)
		}
	})
	return d
}

func noise(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func class(t *testing.T, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

// TestModel: writes, growth and discards come out as in memory, whatever their alignment.
func TestModel(t *testing.T) {
	labtest.Root(t, program)
	want := noise(10_000)
	path := fileOf(t, want)
	size := int64(len(want))
	d := open(t, Options{Node: file{path}, Writable: true, Size: &size})
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		offset, length := random.IntN(len(want)+100), 1+random.IntN(5000)
		switch random.IntN(5) {
		case 0:
			n := min(length, max(0, len(want)-offset))
			clear(want[min(offset, len(want)):][:n])
			if err := d.Discard(int64(offset), int64(length)); err != nil {
				t.Fatal(err)
			}
		case 1:
			if more := length % 700; len(want) < 60_000 {
				want = append(want, make([]byte, more)...)
				if err := d.Truncate(int64(len(want))); err != nil {
					t.Fatal(err)
				}
			}
		default:
			p := noise(length)
			if short := offset + length - len(want); short > 0 {
				want = append(want, make([]byte, short)...)
			}
			copy(want[offset:], p)
			if n, err := d.WriteAt(p, int64(offset)); n != length || err != nil {
				t.Fatal(n, err)
			}
		}
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil || !bytes.Equal(got, want) || d.Size() != int64(len(want)) {
		t.Errorf("reads differently: %d bytes of %d, %v", d.Size(), len(want), err)
	}
	got, err = os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(got, want) {
		t.Errorf("the file is different: %v", err)
	}
	class(t, "cut", d.Truncate(10), fault.Invalid)
}

func TestReadOnly(t *testing.T) {
	labtest.Root(t, program)
	d := open(t, Options{Node: file{fileOf(t, noise(1000))}})
	_, err := d.WriteAt([]byte("x"), 0)
	class(t, "write", err, fault.Permission)
	class(t, "grow", d.Truncate(5000), fault.Permission)
	class(t, "discard", d.Discard(0, 1), fault.Permission)
	class(t, "sync", d.Sync(), fault.Permission)
	_, err = d.ReadAt(make([]byte, 1), -1)
	class(t, "read before the beginning", err, fault.Invalid)
}

func TestExtents(t *testing.T) {
	labtest.Root(t, program)
	path := fileOf(t, nil)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(3 << 30) // over several windows
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{1 << 20, 5 << 29} {
		if _, err := f.WriteAt(noise(1<<16), at); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, Options{Node: file{path}})
	var got string
	for offset := int64(0); ; {
		start, end, err := d.NextData(offset)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got += fmt.Sprintf("%d-%d ", start, end)
		offset = end
	}
	if want := fmt.Sprintf("%d-%d %d-%d ", 1<<20, 1<<20+1<<16, int64(5<<29), int64(5<<29+1<<16)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestOpenErrors(t *testing.T) {
	labtest.Root(t, program)
	for name, row := range map[string]struct {
		node Node
		want fault.Class
		says string
	}{
		"no file":          {file{"/nothing/there"}, fault.NotFound, "there"},
		"no pool":          {RBD{Image: "a", Conf: "/x"}, fault.Invalid, "pool"},
		"no configuration": {RBD{Pool: "p", Image: "a", Conf: "/x/y"}, fault.Invalid, "/x/y"},
		"line break":       {ISCSI{Portal: "a\nb", Target: "t"}, fault.Invalid, "line break"},
		"half a login":     {ISCSI{Portal: "a", Target: "t", User: "u"}, fault.Invalid, "CHAP"},
		"relative":         {NFS{Host: "h", Path: "a"}, fault.Invalid, "absolute"},
		"format":           {Format{"raw", NFS{Host: "h", Path: "/a"}}, fault.Invalid, "raw"},
		"nobody listens":   {ISCSI{Portal: "127.0.0.1:1", Target: "iqn.x"}, fault.Unavailable, "onnect"},
	} {
		t.Run(name, func(t *testing.T) {
			if f, ok := row.node.(file); ok {
				row.node = plainFile(f)
			}
			_, err := Open(t.Context(), Options{Label: "object a", Node: row.node})
			class(t, "open", err, row.want)
			if err == nil || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), "object a: ") {
				t.Errorf("%v does not say %s and object a", err, row.says)
			}
		})
	}
}

// plainFile is a file without its rights changed.
type plainFile struct{ path string }

func (f plainFile) check() error                      { return nil }
func (f plainFile) options(s *supplies, c common) any { return fileOptions{c.of("file"), f.path} }

// TestUnprivileged: the child cannot open what is its owner's.
func TestUnprivileged(t *testing.T) {
	labtest.Root(t, program)
	_, err := Open(t.Context(), Options{Label: "a", Node: plainFile{fileOf(t, []byte("root's"))}})
	class(t, "open a file of root", err, fault.Permission)
}

// deaf accepts connections and never answers.
func deaf(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func TestOpeningEnds(t *testing.T) {
	labtest.Root(t, program)
	node := ISCSI{Portal: deaf(t), Target: "iqn.2026-01.example:none"}
	_, err := Open(t.Context(), Options{Label: "a", Node: node, Limit: 300 * time.Millisecond})
	class(t, "limit", err, fault.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "300ms") {
		t.Errorf("%v does not say which limit it was", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, Options{Label: "a", Node: node, Limit: 24 * time.Hour}) // this would not end
	class(t, "context", err, fault.Unavailable)
}

// TestChildDies: requests end at once and say so; what is read only goes on with another child, a target does not.
func TestChildDies(t *testing.T) {
	labtest.Root(t, program)
	for _, writable := range []bool{false, true} {
		d := open(t, Options{Node: file{fileOf(t, noise(4096))}, Writable: writable})
		if err := d.child.process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-d.child.dead
		if writable {
			_, err := d.ReadAt(make([]byte, 10), 0)
			class(t, "read", err, fault.Unavailable)
			_, err = d.WriteAt(make([]byte, 10), 0)
			class(t, "write", err, fault.Unavailable)
			class(t, "grow", d.Truncate(1<<20), fault.Unavailable)
			err = d.Sync()
			var notBegun *repository.NotBegun
			if !errors.As(err, &notBegun) || !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "signal: killed") {
				t.Errorf("%v", err)
			}
			continue
		}
		d.mu.Lock()
		d.begun = time.Time{} // long ago
		d.mu.Unlock()
		p := make([]byte, 4096)
		if n, err := d.ReadAt(p, 0); n != 4096 || err != nil || !bytes.Equal(p, noise(4096)) {
			t.Errorf("%d, %v", n, err)
		}
	}
}

// TestStorageHangs: a request without answer ends in time, and nothing touches its buffer after that.
func TestStorageHangs(t *testing.T) {
	labtest.Root(t, program)
	d := open(t, Options{Node: file{fileOf(t, noise(4096))}, Writable: true})
	d.options.Limit = 300 * time.Millisecond // from now on: to begin takes longer on a busy machine
	halt(t, d)
	_, err := d.ReadAt(make([]byte, 10), 0)
	class(t, "read", err, fault.Unavailable)
	err = d.Sync()
	class(t, "sync", err, fault.Unavailable)
	var notBegun *repository.NotBegun
	if errors.As(err, &notBegun) {
		t.Error("the sync had begun")
	}
	if err := d.child.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.options.Limit = 2 * time.Minute
	if _, err := d.ReadAt(make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

func halt(t *testing.T, d *Disk) {
	t.Helper()
	if err := labtest.Halt(d.child.process.Pid); err != nil {
		t.Fatal(err)
	}
}

// TestCloseOfWhatHangs: Close ends requests under way, and the child.
func TestCloseOfWhatHangs(t *testing.T) {
	labtest.Root(t, program)
	d := open(t, Options{Node: file{fileOf(t, noise(4096))}})
	halt(t, d)
	var group sync.WaitGroup
	group.Go(func() {
		_, err := d.ReadAt(make([]byte, 10), 0)
		class(t, "read", err, fault.Unavailable)
	})
	process := d.child.process
	d.Close()
	group.Wait()
	if err := process.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the child lives: %v", err)
	}
	_, err := d.ReadAt(make([]byte, 10), 0)
	class(t, "read when closed", err, fault.Unavailable)
}

// TestSleep: one that nobody reads has no child, and gets one when somebody does.
func TestSleep(t *testing.T) {
	labtest.Root(t, program)
	d := open(t, Options{Node: file{fileOf(t, noise(4096))}, Idle: 50 * time.Millisecond})
	for range 2 {
		for asleep := false; !asleep; time.Sleep(time.Millisecond) { // ends with the test's limit
			d.mu.RLock()
			asleep = d.child == nil
			d.mu.RUnlock()
		}
		p := make([]byte, 4096)
		if n, err := d.ReadAt(p, 0); n != 4096 || err != nil || !bytes.Equal(p, noise(4096)) {
			t.Fatal(n, err)
		}
	}
}

// TestContextOfReader: what was opened for reading ends with the context it was opened with.
func TestContextOfReader(t *testing.T) {
	labtest.Root(t, program)
	ctx, cancel := context.WithCancel(t.Context())
	d, err := Open(ctx, Options{Label: "a", Node: file{fileOf(t, noise(4096))}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	cancel()
	for range 100 { // also when QEMU is quick
		_, err = d.ReadAt(make([]byte, 10), 0)
		class(t, "read", err, fault.Unavailable)
	}
}

// TestNothingShows: neither secrets nor names are in the arguments or the environment of the child.
func TestNothingShows(t *testing.T) {
	labtest.Root(t, program)
	t.Setenv("CEPH_ARGS", "--keyring=/x")
	d := open(t, Options{Node: file{fileOf(t, noise(4096))}})
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.child.process.Pid, name))
		if err != nil || bytes.Contains(b, []byte("CEPH")) || bytes.Contains(b, []byte(t.Name())) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, text := range []string{fmt.Sprint(Secret("abc")), fmt.Sprintf("%#v", RBD{Key: "abc"}), fmt.Sprintf("%+v", ISCSI{Password: "abc"})} {
		if strings.Contains(text, "abc") {
			t.Error(text)
		}
	}
}

// TestSweep: what a killed process left goes away, what is in use does not.
func TestSweep(t *testing.T) {
	in := t.TempDir()
	p, err := newPrivate(in)
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(in, dirPrefix+"1")
	if err := os.Mkdir(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	late, err := os.Open(dead) // by one who wants the lock, too
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	sweep(in)
	if still(dead, late) == nil {
		t.Error("what was swept is still taken for what is there")
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dead: %v", err)
	}
	if _, err := os.Stat(p.path); err != nil {
		t.Errorf("living: %v", err)
	}
	if err := p.remove(); err != nil {
		t.Error(err)
	}
}

// TestGrowingEnds: when the storage hangs while the object grows, it is over with the child, and whoever comes right after that is told so.
func TestGrowingEnds(t *testing.T) {
	labtest.Root(t, program)
	d := open(t, Options{Node: file{fileOf(t, noise(4096))}, Writable: true})
	d.options.Limit = 300 * time.Millisecond // from now on: to begin takes longer on a busy machine
	halt(t, d)
	class(t, "grow", d.Truncate(1<<20), fault.Unavailable)
	_, err := d.WriteAt(make([]byte, 10), 0)
	class(t, "write", err, fault.Unavailable)
	if d.Size() != 4096 {
		t.Errorf("%d bytes", d.Size())
	}
}
