package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"hayloft/cloud/fault"
	"hayloft/store"
)

func TestConfigRefused(t *testing.T) {
	files := TLSFiles{Cert: "c.pem", Key: "k.pem", CA: "ca.pem"}
	for _, row := range []struct {
		name string
		cfg  Config
		says string
	}{
		{"no directory", Config{Dir: ""}, "no data directory"},
		{"name", Config{Name: "a=b"}, `"a=b"`},
		{"prefix", Config{Prefix: "/x"}, `"/x"`},
		{"short TTL", Config{ElectionTTL: time.Second}, "1s"},
		{"heartbeat", Config{Heartbeat: time.Hour}, "1h0m0s"},
		{"join alone", Config{Join: true}, "PeerURL"},
		{"open peer address", Config{PeerURL: "http://10.0.0.1:2380"}, "unencrypted"},
		{"open client address", Config{ClientURL: "http://10.0.0.1:2379"}, "unencrypted"},
		{"https without files", Config{ClientURL: "https://10.0.0.1:2379"}, "certificates"},
		{"files without https", Config{ClientURL: "http://127.0.0.1:2379", ClientTLS: files}, "https wanted"},
		{"no port", Config{PeerURL: "http://127.0.0.1"}, "http://127.0.0.1"},
		{"no address", Config{PeerURL: "somewhere"}, "somewhere"},
		{"unreadable address", Config{PeerURL: "http://[::1:80"}, "peer address"},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		if row.name != "no directory" {
			row.cfg.Dir = dir
		}
		_, err := Embedded(t.Context(), row.cfg)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v (%v)", row.name, err, fault.ClassOf(err))
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: a refused configuration left %s behind", row.name, dir)
		}
	}
}

func TestEndpointsRefused(t *testing.T) {
	for _, row := range []struct {
		cfg  ClientConfig
		says string
	}{
		{ClientConfig{}, "no endpoints"},
		{ClientConfig{Endpoints: []string{"10.0.0.1"}}, `"10.0.0.1"`},
		{ClientConfig{Endpoints: []string{"ftp://10.0.0.1:21"}}, "ftp"},
		{ClientConfig{Endpoints: []string{"https://10.0.0.1:2379"}}, "TLS"},
		{ClientConfig{Endpoints: []string{"http://10.0.0.1:2379"}, TLS: &tls.Config{}}, "https wanted"},
		{ClientConfig{Endpoints: []string{"127.0.0.1:2379"}, Password: "x"}, "user name"},
	} {
		if _, err := Connect(t.Context(), row.cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%+v: %v (%v)", row.cfg, err, fault.ClassOf(err))
		}
	}
}

func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, row := range []struct{ endpoint, says string }{
		{"127.0.0.1:" + freePorts(t, 1)[0], "connection refused"},
		{"http://" + silent.Addr().String(), "etcd does not answer"},
		{"unix://" + filepath.Join(t.TempDir(), "missing"), "no such file"},
	} {
		begin := time.Now()
		_, err := Connect(t.Context(), ClientConfig{Endpoints: []string{row.endpoint}, DialTimeout: time.Second})
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), row.endpoint) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v (%v)", row.endpoint, err, fault.ClassOf(err))
		}
		if took := time.Since(begin); took > patience {
			t.Errorf("%s: took %v", row.endpoint, took)
		}
	}
}

// TestDataRefused spoils a data directory in several ways.
func TestDataRefused(t *testing.T) {
	pristine := t.TempDir()
	s := embedded(t, Config{Dir: pristine})
	if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put("a", make([]byte, 100_000))}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		class fault.Class
		says  string
	}{
		{"newer", func(t *testing.T, dir string) { setVersion(t, dir, "9.1.0") }, fault.Unsupported, "9.1.0"},
		{"damaged database", func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "member", "snap", "db"))
		}, fault.Corrupt, "member/snap/db"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
				t.Fatal(err)
			}
			row.spoil(t, dir)
			_, err := Embedded(t.Context(), Config{Dir: dir})
			if !fault.Is(err, row.class) || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v (%v)", err, fault.ClassOf(err))
			}
			t.Log(err)
		})
	}
}

func setVersion(t *testing.T, dir, version string) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("storageVersion"), []byte(version))
	}); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("spoilt! "), 2048)); err != nil {
		t.Fatal(err)
	}
}

func TestForeignLock(t *testing.T) {
	dir := t.TempDir()
	s := embedded(t, Config{Dir: dir})
	s.Close()
	db, err := bbolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := Embedded(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), dir) {
		t.Errorf("database locked by another program: %v", err)
	}
}

func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = Embedded(t.Context(), Config{Dir: t.TempDir(), ClientURL: "http://" + taken.Addr().String()})
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("%v (%v)", err, fault.ClassOf(err))
	}
}

func TestClusterThatDoesNotForm(t *testing.T) {
	ports := freePorts(t, 2)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := Embedded(ctx, Config{Dir: dir, Name: "m0", PeerURL: "http://127.0.0.1:" + ports[0],
		Members: map[string]string{"m0": "http://127.0.0.1:" + ports[0], "m1": "http://127.0.0.1:" + ports[1]}})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "2 members") {
		t.Errorf("%v (%v)", err, fault.ClassOf(err))
	}
}

// slowness is what etcd rightly complains of on a machine with much else to do.
var slowness = regexp.MustCompile("took too long|taking too long|slow fdatasync|timed out")

// complaints are lines of a log without those. etcd's goroutines write them.
type complaints struct {
	mu    sync.Mutex
	lines []string
}

func (c *complaints) Write(line []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slowness.Match(line) {
		c.lines = append(c.lines, string(line))
	}
	return len(line), nil
}

// TestQuiet reads what etcd says in the life of a healthy store.
func TestQuiet(t *testing.T) {
	var said complaints
	dir := t.TempDir()
	for range 2 {
		s := embedded(t, Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&said, nil))})
		if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put("a", nil)}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	said.mu.Lock()
	defer said.mu.Unlock()
	if len(said.lines) > 0 {
		t.Errorf("etcd said: %q", said.lines)
	}
}
