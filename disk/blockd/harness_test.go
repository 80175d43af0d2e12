package blockd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/image"
)

// bench is a host with one repository.
type bench struct {
	t       testing.TB
	dir     string
	repo    disk.Repository
	config  Config
	mu      sync.Mutex
	away    error            // of the repository, when it cannot be reached
	fetched map[string]int64 // bytes read of each object
}

func newBench(t testing.TB) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "hl") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, dir: dir, repo: disk.Repository{ID: 1, Driver: "path", Path: filepath.Join(dir, "repository")}, fetched: map[string]int64{}}
	for _, sub := range []string{"repository", "base", "machine", "state"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.config = Config{StateDir: filepath.Join(dir, "state"), Version: "test", Log: logOf(t), Open: b.open, Patience: patience}
	return b
}

func logOf(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return slog.New(slog.DiscardHandler)
}

// open is the drivers' with failures and counters in between.
func (b *bench) open(r disk.Repository) (repository.Repository, error) {
	repo, err := drivers.Open(r)
	if err != nil {
		return nil, err
	}
	return &watched{repo.(repository.Writable), repo, b}, nil
}

func (b *bench) setAway(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = err
}

func (b *bench) reach() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.away
}

func (b *bench) read(object string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fetched[object]
}

type watched struct {
	repository.Writable
	repository.Repository
	bench *bench
}

func (w *watched) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := w.bench.reach(); err != nil {
		return nil, err
	}
	s, err := w.Repository.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &watchedSource{s, w.bench, name}, nil
}

func (w *watched) OpenTarget(ctx context.Context, name string, o repository.Owner) (repository.Target, repository.Mark, error) {
	if err := w.bench.reach(); err != nil {
		return nil, repository.Mark{}, err
	}
	return w.Writable.OpenTarget(ctx, name, o)
}

type watchedSource struct {
	repository.Source
	bench *bench
	name  string
}

func (s *watchedSource) ReadAt(p []byte, offset int64) (int, error) {
	if err := s.bench.reach(); err != nil {
		return 0, err
	}
	n, err := s.Source.ReadAt(p, offset)
	s.bench.mu.Lock()
	defer s.bench.mu.Unlock()
	s.bench.fetched[s.name] += int64(n)
	return n, err
}

var errAway = fault.Errorf(fault.Unavailable, "repository is away")

// content is size bytes that look like nothing else.
func content(size int, seed uint64) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7})
	_, _ = r.Read(b)
	return b
}

// image puts an image into the repository.
func (b *bench) image(id int, name string, bytes_ []byte) disk.Image {
	b.t.Helper()
	repo, err := drivers.Open(b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	w, err := repo.Create(b.t.Context(), name)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := w.SetSize(int64(len(bytes_))); err != nil {
		b.t.Fatal(err)
	}
	index, _, err := image.Scan(b.t.Context(), w, bytes.NewReader(bytes_), int64(len(bytes_)), nil)
	if err == nil {
		err = image.Publish(b.t.Context(), repo, name, w, index)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return disk.Image{ID: id, Name: name, Repository: b.repo, Source: name, Format: "raw", Digest: index.Digest(), Size: int64(len(bytes_))}
}

func (b *bench) spec(img disk.Image) BaseSpec {
	b.t.Helper()
	hex, err := image.ParseDigest(img.Digest)
	if err != nil {
		b.t.Fatal(err)
	}
	dir := filepath.Join(b.dir, "base", hex)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	return BaseSpec{Image: img, Dir: dir, GID: os.Getegid()}
}

func (b *bench) export(name string) Export {
	return Export{Name: name, Kind: NBD, Path: filepath.Join(b.dir, "machine", name), UID: os.Geteuid(), GID: os.Getegid()}
}

func (b *bench) baseExport(name string, img disk.Image) Export {
	e := b.export(name)
	s := b.spec(img)
	e.Base = &s
	return e
}

func (b *bench) volumeExport(name string, img disk.Image, mode cache.Mode) Export {
	b.t.Helper()
	e := b.export(name)
	dir := filepath.Join(b.dir, "machine", name+".cache")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	e.Volume = &VolumeSpec{Image: img, Dir: dir, Machine: 12, Host: "this", Size: img.Size, Mode: mode}
	return e
}

func (b *bench) daemon() *Daemon {
	b.t.Helper()
	d, err := New(b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func class(t testing.TB, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

// dial connects to an export.
func dial(t testing.TB, path string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(context.Background(), "unix", path, "")
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func readAll(t testing.TB, c *nbd.Client) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	must(t, err)
	return b
}

// patience is how long tests wait for what must come, on a machine with much else to do.
const patience = 2 * time.Minute

// eventually waits for what comes about without our doing.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come about", what)
		}
	}
}

func exportOf(t testing.TB, s Service, name string) ExportStatus {
	t.Helper()
	status, err := s.Status(context.Background())
	must(t, err)
	for _, e := range status.Exports {
		if e.Name == name {
			return e
		}
	}
	t.Fatalf("no export %s in %+v", name, status.Exports)
	return ExportStatus{}
}

func says(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
}
