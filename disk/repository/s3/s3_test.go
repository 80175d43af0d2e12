package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
	"hayloft/disk/repository/repositorytest"
	"hayloft/internal/leaktest"
	"hayloft/lab/s3lab"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// quick tries again soon. It waits long for what comes late: the tests of servers that say nothing have a limit of their own.
var quick = attempt.Patience{Stall: 2 * time.Minute, Attempts: 3, First: time.Millisecond, Longest: 10 * time.Millisecond}

func start(t *testing.T, c s3lab.Config) *s3lab.Server {
	t.Helper()
	s, err := s3lab.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// keyFile has the simulator's secret.
func keyFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func connect(t *testing.T, s *s3lab.Server, path string) *Repository {
	t.Helper()
	r, err := New(disk.Repository{ID: 7, Driver: "s3", Path: s.Endpoint + path, Options: map[string]string{"ACCESS_KEY_ID": "hay",
		"SECRET_KEY_FILE": keyFile(t, "s3cret\n"), "CA_FILE": s.CAFile, "PLAIN_CREDENTIALS": "YES", "SPOOL_DIR": t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name, prefix string
		tls, old     bool
	}{{"http", "", false, false}, {"https with a prefix", "/some where/below", true, false}, {"no conditions", "", false, true}} {
		t.Run(test.name, func(t *testing.T) {
			open := func(t *testing.T) (*Repository, *s3lab.Server) {
				c := s3lab.Config{Unconditional: test.old, Page: 3}
				if test.tls {
					c.CertDir = t.TempDir()
				}
				s := start(t, c)
				r := connect(t, s, test.prefix)
				t.Cleanup(func() {
					if n := s.Uploads(); n != 0 {
						t.Errorf("%d uploads are left", n)
					}
				})
				return r, s
			}
			repositorytest.Run(t, func(t *testing.T) repository.Repository { r, _ := open(t); return r })
			repositorytest.Reading(t, func(t *testing.T, objects map[string]string) repository.Repository {
				r, s := open(t)
				for name, content := range objects {
					s.Put(r.key(name), content)
				}
				return r
			})
		})
	}
}

func random(seed byte, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func check(t *testing.T, r *Repository, name string, want []byte) {
	t.Helper()
	s, err := r.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := make([]byte, s.Size())
	if _, err := s.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes differ from %d, %v", name, len(got), len(want), err)
	}
}

func count(log []string, operation string) int {
	n := 0
	for _, line := range log {
		if strings.Contains(line, " "+operation+" ") {
			n++
		}
	}
	return n
}

// TestParts: a large object goes out in parts while it is written, its holes are not sent, and what is written again
// after it went out is sent again.
func TestParts(t *testing.T) {
	s := start(t, s3lab.Config{CertDir: t.TempDir()})
	r := connect(t, s, "")
	const size = 7*firstPart + 1000
	want := make([]byte, size)
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	put := func(p []byte, offset int64) {
		t.Helper()
		copy(want[offset:], p)
		for len(p) > 0 {
			n := min(len(p), 3<<20)
			if _, err := w.WriteAt(p[:n], offset); err != nil {
				t.Fatal(err)
			}
			p, offset = p[n:], offset+int64(n)
		}
	}
	put(random(1, int(2*firstPart)), 0)
	w.(*writer).going.Wait()
	if s.Received() < 2*firstPart {
		t.Errorf("%d bytes went out before the commit", s.Received())
	}
	put([]byte("written again"), 100)
	put([]byte("in a hole"), 5*firstPart+7)
	if err := w.SetSize(size); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, r, "a", want)
	log := s.Operations()
	// Two parts, the first once more, the one in the hole; the rest is copied from the object of zeros.
	if up, copies := count(log, "UploadPart"), count(log, "UploadPartCopy"); up != 4 || copies != 5 {
		t.Errorf("%d parts sent, %d copied: %q", up, copies, log)
	}
	if keys := s.Keys(); len(keys) != 1 {
		t.Errorf("there are %q", keys)
	}
	if got := s.Received(); got > 5*firstPart+1<<20 {
		t.Errorf("%d bytes sent", got)
	}
}

// TestCloneCost: the bytes of parts that are as they were do not come through here.
func TestCloneCost(t *testing.T) {
	s := start(t, s3lab.Config{CertDir: t.TempDir()})
	r := connect(t, s, "/x")
	content := random(2, 64<<20+77)
	s.Put("x/a", string(content))
	w, kind, err := r.CreateFrom(t.Context(), "a", "b")
	if err != nil || kind != repository.Copied {
		t.Fatal(kind, err)
	}
	defer w.Abort()
	if _, err := w.WriteAt([]byte("changed"), 30<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.SetSize(80 << 20); err != nil {
		t.Fatal(err)
	}
	sent, received := s.Sent(), s.Received()
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes: %d came and %d went through this host for a change of 7", len(content), s.Sent()-sent, s.Received()-received)
	if s.Sent()-sent > 12<<20 || s.Received()-received > 27<<20 { // the changed part, the last one, and what was added
		t.Error("that is too much")
	}
	want := make([]byte, 80<<20)
	copy(want, content)
	check(t, r, "a", content)
	copy(want[30<<20:], "changed")
	check(t, r, "b", want)
	// Nothing changed at all: no byte.
	sent, received = s.Sent(), s.Received()
	if w, _, err = r.CreateFrom(t.Context(), "a", "c"); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Sent()-sent > 20_000 || s.Received()-received > 20_000 {
		t.Errorf("%d came, %d went", s.Sent()-sent, s.Received()-received)
	}
	check(t, r, "c", content)
}

func TestParentGoes(t *testing.T) {
	s := start(t, s3lab.Config{})
	r := connect(t, s, "")
	for _, way := range []struct {
		name   string
		change func() error
	}{
		{"deleted", func() error { return r.Delete(t.Context(), "a") }},
		{"replaced", func() error { s.Put("a", strings.Repeat("other", 4<<20)); return nil }},
	} {
		name, change := way.name, way.change
		s.Put("a", string(random(3, 20<<20)))
		w, _, err := r.CreateFrom(t.Context(), "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "parent a") {
			t.Errorf("%s: %v", name, err)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
	if s.Uploads() != 0 || len(s.Keys()) != 1 {
		t.Errorf("%d uploads, %q", s.Uploads(), s.Keys())
	}
}

// TestTwoHosts: of two that write one name, the first to commit has it.
func TestTwoHosts(t *testing.T) {
	for _, size := range []int{10, 20 << 20} {
		s := start(t, s3lab.Config{})
		var writers []repository.Writer
		for i := range 2 {
			w, err := connect(t, s, "").Create(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt(random(byte(i), size), 0); err != nil {
				t.Fatal(err)
			}
			writers = append(writers, w)
		}
		// Neither sees the other: the condition of the server decides.
		errs := make(chan error)
		for _, w := range writers {
			go func() { errs <- w.Commit(t.Context()) }()
		}
		one, two := <-errs, <-errs
		if (one == nil) == (two == nil) || !fault.Is(errors.Join(one, two), fault.Exists) {
			t.Errorf("%v, %v", one, two)
		}
		for _, w := range writers {
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
		}
		if s.Uploads() != 0 || len(s.Keys()) != 1 {
			t.Errorf("%d uploads, %q", s.Uploads(), s.Keys())
		}
	}
}

func TestSweep(t *testing.T) {
	s := start(t, s3lab.Config{Page: 2})
	r := connect(t, s, "/p")
	dead := func(name string) {
		w, err := r.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		u := w.(*writer).up
		if _, err := u.begun(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Put(u.zerosKey(), "0")
		if err := w.(*writer).end(); err != nil { // as a process that dies
			t.Fatal(err)
		}
	}
	for _, name := range []string{"m/1/a", "m/1/b", "m/2/a", "n", "o"} {
		dead(name)
	}
	s.Put("p/m/1/image", "x")
	s.Put("m/1/elsewhere", "x")
	state := func() string { return fmt.Sprintf("%d uploads, %d objects", s.Uploads(), len(s.Keys())) }
	for _, row := range []struct {
		prefix string
		age    time.Duration
		want   string
	}{{"", 0, "5 uploads, 7 objects"}, {"m/1/", 2 * deadAfter, "3 uploads, 5 objects"}, {"m/2/a", 0, "2 uploads, 4 objects"}, {"", 0, "0 uploads, 2 objects"}} {
		s.Age(row.age)
		if err := r.Sweep(t.Context(), row.prefix); err != nil {
			t.Error(err)
		}
		if state() != row.want {
			t.Errorf("after %q: %s, want %s", row.prefix, state(), row.want)
		}
	}
}

func TestBadOptions(t *testing.T) {
	key := keyFile(t, "s3cret")
	for _, row := range []struct {
		path    string
		options map[string]string
		says    string
	}{
		{"", nil, "is not https://HOST"}, {"/srv", nil, "is not https://HOST"}, {"https://host", nil, "bucket"}, {"https://host/", nil, "bucket"},
		{"https://host/B_/x", nil, "bucket"}, {"https://hay:geheim@host/images", nil, "has a user in it"}, {"https://host/images?x", nil, "query"},
		{"https://host/images/../x", nil, "prefix"}, {"https://host/images//x", nil, "prefix"}, {"s3://images", nil, "is not https://HOST"},
		{"https://host/images", map[string]string{"ACCESS_KEY_ID": "a"}, "go together"},
		{"https://host/images", map[string]string{"SECRET_KEY_FILE": key}, "go together"},
		{"http://host/images", map[string]string{"ACCESS_KEY_ID": "a", "SECRET_KEY_FILE": key}, "PLAIN_CREDENTIALS"},
		{"http://host/images", map[string]string{"PLAIN_CREDENTIALS": "maybe"}, "neither YES nor NO"},
		{"https://host/images", map[string]string{"CA_FILE": key}, "CA_FILE"},
		{"https://host/images", map[string]string{"ACCESS_KEY_ID": "a b", "SECRET_KEY_FILE": key}, "ACCESS_KEY_ID"},
	} {
		_, err := New(disk.Repository{ID: 7, Path: row.path, Options: row.options})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7") || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s %v: %v", row.path, row.options, err)
		}
		if err != nil && (strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("tells the secret: %v", err)
		}
	}
}

func TestCredentials(t *testing.T) {
	s := start(t, s3lab.Config{Region: "eu-hay-1"})
	s.Put("a", "x")
	for _, row := range []struct {
		name, id, region, key string
		class                 fault.Class
		says                  string
	}{
		{"right", "hay", "eu-hay-1", "s3cret", 0, ""},
		{"wrong key", "hay", "eu-hay-1", "geheim", fault.Permission, "403"},
		{"wrong id", "nobody", "eu-hay-1", "s3cret", fault.Permission, "InvalidAccessKeyId"},
		{"wrong region", "hay", "", "s3cret", fault.Unsupported, "eu-hay-1"},
		{"nobody", "", "eu-hay-1", "", fault.Permission, "AccessDenied"},
	} {
		options := map[string]string{"REGION": row.region, "PLAIN_CREDENTIALS": "YES"}
		if row.id != "" {
			options["ACCESS_KEY_ID"], options["SECRET_KEY_FILE"] = row.id, keyFile(t, row.key)
		}
		r, err := New(disk.Repository{ID: 7, Path: s.Endpoint, Options: options})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		_, err = r.List(t.Context(), "")
		if row.says == "" && err != nil || row.says != "" && (!fault.Is(err, row.class) || !strings.Contains(err.Error(), row.says) && row.name != "wrong key") {
			t.Errorf("%s: %v", row.name, err)
		}
		_, err2 := r.Create(t.Context(), "b/c")
		for _, err := range []error{err, err2} {
			if err != nil && strings.Contains(err.Error(), row.key) && row.key != "" {
				t.Errorf("%s tells the key: %v", row.name, err)
			}
		}
	}
	open := keyFile(t, "s3cret")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := New(disk.Repository{ID: 7, Path: s.Endpoint, Options: map[string]string{"ACCESS_KEY_ID": "hay", "SECRET_KEY_FILE": open, "PLAIN_CREDENTIALS": "YES"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Stat(t.Context(), "a"); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "0600 is wanted") {
		t.Error(err)
	}
}

func TestNoBucket(t *testing.T) {
	s := start(t, s3lab.Config{})
	s.Endpoint = strings.Replace(s.Endpoint, "/images", "/elsewhere", 1)
	r := connect(t, s, "")
	if _, err := r.List(t.Context(), ""); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "bucket does not exist") {
		t.Error(err)
	}
}

func TestCertificates(t *testing.T) {
	s := start(t, s3lab.Config{CertDir: t.TempDir()})
	s.CAFile = ""
	r := connect(t, s, "")
	if _, err := r.Stat(t.Context(), "a"); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
}

func TestUnreachable(t *testing.T) {
	s := start(t, s3lab.Config{})
	r := connect(t, s, "")
	r.patience = quick
	s.Close()
	_, err1 := r.Open(t.Context(), "a")
	_, err2 := r.Create(t.Context(), "a")
	_, err3 := r.List(t.Context(), "")
	for _, err := range []error{err1, err2, err3, r.Delete(t.Context(), "a"), r.Sweep(t.Context(), "")} {
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "datastore 7 (http://127.0.0.1:") {
			t.Errorf("%v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Open(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
