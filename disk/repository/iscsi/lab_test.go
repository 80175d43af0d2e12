package iscsi

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/internal/command"
	"hayloft/internal/leaktest"
	"hayloft/internal/lvm"
	"hayloft/internal/lvm/lvmtest"
	"hayloft/lab/labtest"
	"hayloft/lab/tgtlab"
)

const (
	testGroup  = "vg"
	testExtent = 32 << 10
	testSize   = 256 << 20
)

// storage is a storage server: LVM is played, with files for devices; all else is real.
type storage struct {
	*lvmtest.Host
	tgt  *tgtlab.Server
	rest command.Runner // for what is not LVM's
	mu   sync.Mutex
	hook atomic.Pointer[func(cmd command.Cmd) error]
	time atomic.Int64 // what its clock says, in Unix seconds; 0: what this machine's says
}

// before has f asked before each program runs; nil for nobody.
func (s *storage) before(f func(cmd command.Cmd) error) {
	if f == nil {
		s.hook.Store(nil)
		return
	}
	s.hook.Store(&f)
}

func newStorage(t testing.TB) *storage {
	t.Helper()
	labtest.Root(t, "tgtd", "tgtadm", "qemu-storage-daemon", "dd")
	tgt := tgtlab.Start(t)
	return &storage{Host: lvmtest.New(t.TempDir(), testGroup, testSize, testExtent), tgt: tgt, rest: tgt.Runner(command.Exec{})}
}

var selected = regexp.MustCompile(`^lv_uuid="([^"]+)" && (?:lv_tags=\{"([^"]+)"\}|!\(lv_role=\{"thickorigin"\}\))$`)

// Run implements command.Runner.
func (s *storage) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	if hook := s.hook.Load(); hook != nil {
		if err := (*hook)(cmd); err != nil {
			return nil, err
		}
	}
	switch now := s.time.Load(); {
	case cmd.Name == "date" && now != 0:
		return fmt.Appendln(nil, now), nil
	case cmd.Name != "blkdiscard" && !strings.HasPrefix(cmd.Name, "lv") && !strings.HasPrefix(cmd.Name, "vg"):
		return s.rest.Run(ctx, cmd)
	case cmd.Args[0] == "--select":
		s.mu.Lock() // as LVM's lock of a group
		defer s.mu.Unlock()
		want := selected.FindStringSubmatch(cmd.Args[1])
		all, err := lvm.Tools{Runner: s.Host}.Volumes(ctx, testGroup)
		if err != nil {
			return nil, err
		}
		full := cmd.Args[len(cmd.Args)-1]
		if !slices.ContainsFunc(all, func(v lvm.Volume) bool {
			return v.UUID == want[1] && testGroup+"/"+v.Name == full && (slices.Contains(v.Tags, want[2]) || want[2] == "" && !v.IsOrigin)
		}) {
			return nil, nil
		}
		cmd.Args = cmd.Args[2:]
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	return s.Host.Run(ctx, cmd)
}

// repository gives one on that server.
func (s *storage) repository(t testing.TB, options map[string]string) *Repository {
	t.Helper()
	all := map[string]string{"PORTAL": s.tgt.Portal}
	for k, v := range options {
		all[k] = v
	}
	r, err := New(disk.Repository{ID: 7, Path: testGroup, Options: all})
	if err != nil {
		t.Fatal(err)
	}
	r.server, r.device, r.limit = s, s.Path, patience
	t.Cleanup(func() { r.Close() })
	return r
}

// thick and thin make an empty repository each.
func thick(t testing.TB) (*storage, *Repository) {
	s := newStorage(t)
	return s, s.repository(t, nil)
}

func thin(t testing.TB) (*storage, *Repository) {
	s := newStorage(t)
	if err := (lvm.Tools{Runner: s.Host}).CreatePool(t.Context(), lvm.NewPool{Group: testGroup, Name: "pool", Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	return s, s.repository(t, map[string]string{"POOL": "pool"})
}

// clean is what a test leaves: no target, and volumes of finished objects alone.
func clean(t testing.TB, s *storage) {
	t.Helper()
	if n, err := s.tgt.Targets(); n != 0 || err != nil {
		t.Errorf("%d targets are left, %v", n, err)
	}
	all, err := lvm.Tools{Runner: s.Host}.Volumes(context.Background(), testGroup)
	if err != nil {
		t.Error(err)
	}
	for _, v := range all {
		o, _ := read(v)
		isObject := strings.HasPrefix(v.Name, objectPrefix) || strings.HasPrefix(v.Name, copyPrefix) && o.mark.use != ""
		if !isObject && v.Name != "pool" || o.mark.use == replaced {
			t.Errorf("volume %s is left", v.Name)
		}
	}
}

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestSuite(t *testing.T) {
	for name, make := range map[string]func(testing.TB) (*storage, *Repository){"thick": thick, "thin": thin} {
		t.Run(name, func(t *testing.T) {
			repositorytest.Run(t, func(t *testing.T) repository.Repository {
				s, r := make(t)
				t.Cleanup(func() { clean(t, s) })
				return r
			})
		})
	}
}

func class(t *testing.T, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

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

// patience is with what works, on a machine with much else to do.
const patience = 2 * time.Minute

// bounded runs f, which must end by itself with an error of class want.
func bounded(t *testing.T, what string, want fault.Class, f func() error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		class(t, what, err, want)
	case <-time.After(5 * time.Minute):
		t.Errorf("%s does not end", what)
	}
}

// step is one for allBounded.
type step struct {
	what string
	do   func() error
}

// allBounded is bounded for several at once: each takes as long as its limit.
func allBounded(t *testing.T, want fault.Class, steps ...step) {
	t.Helper()
	var group sync.WaitGroup
	for _, s := range steps {
		group.Go(func() { bounded(t, s.what, want, s.do) })
	}
	group.Wait()
}
