package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"os"
	"os/exec"
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
	"hayloft/lab/httplab"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("HAYLOFT_HTTP_CHILD"); path != "" {
		statOnce(path)
	}
	leaktest.Main(m)
}

// statOnce is a process that has proxies in its environment.
func statOnce(path string) {
	r, err := New(disk.Repository{ID: 7, Path: path})
	if err == nil {
		var info repository.Info
		info, err = r.Stat(context.Background(), "a")
		fmt.Print(info.Size, " ")
	}
	fmt.Println(err)
	os.Exit(0)
}

// TestProxy: the environment says who is asked for what.
func TestProxy(t *testing.T) {
	asked := make(chan string, 10)
	proxy := start(t, httplab.Config{Handler: nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		asked <- r.URL.String()
		nethttp.ServeContent(w, r, "", time.Now(), strings.NewReader("through a proxy"))
	})})
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = []string{"HAYLOFT_HTTP_CHILD=http://images.invalid/below", "HTTP_PROXY=" + proxy.URL, "GOCOVERDIR=" + t.TempDir()}
	out, err := child.Output()
	if err != nil || string(out) != "15 <nil>\n" {
		t.Errorf("%s, %v", out, err)
	}
	if u := <-asked; u != "http://images.invalid/below/a" {
		t.Error(u)
	}
}

func start(t *testing.T, c httplab.Config) *httplab.Server {
	t.Helper()
	s, err := httplab.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func connect(t *testing.T, path string, options map[string]string) *Repository {
	t.Helper()
	r, err := New(disk.Repository{ID: 7, Driver: "http", Path: path, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func write(t *testing.T, dir string, objects map[string]string) {
	t.Helper()
	for name, content := range objects {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name       string
		tls, http2 bool
		below      string
	}{{"http/1.1", false, false, ""}, {"https", true, false, "/some where/x%2Fy/"}, {"http/2", true, true, "/images"}} {
		t.Run(test.name, func(t *testing.T) {
			repositorytest.Reading(t, func(t *testing.T, objects map[string]string) repository.Repository {
				c := httplab.Config{Dir: t.TempDir(), HTTP2: test.http2}
				write(t, c.Dir, objects)
				options := map[string]string{}
				if test.tls {
					c.CertDir = t.TempDir()
					options["CA_FILE"] = filepath.Join(c.CertDir, "ca.pem")
				}
				files := c
				c.Handler = serveBelow(t, files, test.below)
				s := start(t, c)
				return connect(t, s.URL+test.below, options)
			})
		})
	}
}

// serveBelow serves the directory of c below a path.
func serveBelow(t *testing.T, c httplab.Config, below string) nethttp.Handler {
	plain := strings.TrimRight(strings.ReplaceAll(below, "%2F", "/"), "/")
	return nethttp.StripPrefix(plain, httplab.Files(c.Dir))
}

func TestBadAddresses(t *testing.T) {
	for path, want := range map[string]string{
		"":                           "is not http://HOST",
		"/srv/images":                "is not http://HOST",
		"ftp://host/x":               "is not http://HOST",
		"https:///x":                 "is not http://HOST",
		"https://user:geheim@host/":  "has a user in it",
		"https://host/x?list":        "has a query",
		"https://host/x#y":           "has a query or fragment",
		"https://host:port\x00/":     "is no URL",
		"https://user:geheim@ho st/": "BASE_PATH",
		"http:opaque":                "is not http://HOST",
	} {
		_, err := New(disk.Repository{ID: 7, Path: path})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: tells the password: %v", path, err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	r := connect(t, "http://127.0.0.1:1/x", nil)
	_, err := r.Create(t.Context(), "a")
	for _, err := range []error{err, r.Delete(t.Context(), "a")} {
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "datastore 7 (http://127.0.0.1:1/x): object a") {
			t.Error(err)
		}
	}
	if c, err := r.Capacity(t.Context()); err != nil || c != (disk.Capacity{}) {
		t.Error(c, err)
	}
}

func TestUnreachable(t *testing.T) {
	r := connect(t, "http://127.0.0.1:1/x", nil)
	r.patience = quick
	_, err := r.Open(t.Context(), "a")
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "datastore 7 (http://127.0.0.1:1/x): object a: gave up after 3 attempts: ") {
		t.Error(err)
	}
	r.patience = attempt.Default()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Stat(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCertificates(t *testing.T) {
	c := httplab.Config{Dir: t.TempDir(), CertDir: t.TempDir()}
	write(t, c.Dir, map[string]string{"a": "x"})
	s := start(t, c)
	if _, err := connect(t, s.URL, nil).Stat(t.Context(), "a"); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
	if _, err := connect(t, s.URL, map[string]string{"CA_FILE": s.CAFile}).Stat(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	for _, file := range []string{filepath.Join(c.Dir, "a"), filepath.Join(c.Dir, "gone")} {
		if _, err := New(disk.Repository{ID: 7, Path: s.URL, Options: map[string]string{"CA_FILE": file}}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "CA_FILE") {
			t.Error(err)
		}
	}
}

func TestCredentials(t *testing.T) {
	dir, certificates := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a": "x"})
	s := start(t, httplab.Config{CertDir: certificates, Handler: nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		user, password, _ := r.BasicAuth()
		if user == "hay" && password == "s3cret" || r.Header.Get("Authorization") == "Bearer t0ken" {
			httplab.Files(dir).ServeHTTP(w, r)
			return
		}
		w.WriteHeader(nethttp.StatusUnauthorized)
	})})
	secret := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(certificates, name)
		if err := errors.Join(os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)); err != nil { // whatever the umask is
			t.Fatal(err)
		}
		return path
	}
	password, token := secret("p", "s3cret\n", 0o600), secret("t", "t0ken", 0o400)
	for _, row := range []struct {
		name    string
		options map[string]string
		class   fault.Class
		ok      bool
	}{
		{"none", nil, fault.Permission, false},
		{"password", map[string]string{"USER": "hay", "PASSWORD_FILE": password}, 0, true},
		{"token", map[string]string{"TOKEN_FILE": token}, 0, true},
		{"wrong", map[string]string{"USER": "hay", "PASSWORD_FILE": token}, fault.Permission, false},
		{"open file", map[string]string{"TOKEN_FILE": secret("o", "t0ken", 0o644)}, fault.Permission, false},
		{"no file", map[string]string{"TOKEN_FILE": "/nowhere"}, fault.Permission, false},
		{"directory", map[string]string{"TOKEN_FILE": dir}, fault.Invalid, false},
		{"two lines", map[string]string{"TOKEN_FILE": secret("l", "t0ken\r\nX-Evil: 1\r\n", 0o600)}, fault.Invalid, false},
		{"empty", map[string]string{"TOKEN_FILE": secret("e", "\n", 0o600)}, fault.Invalid, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			options := map[string]string{"CA_FILE": s.CAFile}
			for k, v := range row.options {
				options[k] = v
			}
			_, err := connect(t, s.URL, options).Stat(t.Context(), "a")
			if row.ok && err != nil || !row.ok && !fault.Is(err, row.class) {
				t.Error(err)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "t0ken")) {
				t.Errorf("tells the secret: %v", err)
			}
		})
	}
	for name, options := range map[string]map[string]string{
		"go together": {"USER": "hay"}, "one of them": {"USER": "hay", "PASSWORD_FILE": password, "TOKEN_FILE": token},
		"colon": {"USER": "h:y", "PASSWORD_FILE": password}, "on the way": {"TOKEN_FILE": token}, "neither": {"PLAIN_CREDENTIALS": "maybe"},
	} {
		if _, err := New(disk.Repository{ID: 7, Path: "http://host/", Options: options}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(disk.Repository{ID: 7, Path: "http://host/", Options: map[string]string{"TOKEN_FILE": token, "PLAIN_CREDENTIALS": "yes"}}); err != nil {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	s := start(t, httplab.Config{Dir: dir})
	r := connect(t, s.URL, nil)
	if _, err := r.List(t.Context(), ""); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "index.json") {
		t.Error(err)
	}
	for content, want := range map[string]string{
		`{"objects":[{"name":"m/b","size":2},{"name":"m/a","size":1,"modified":"2024-01-02T03:04:05Z"},{"name":"x","size":3}]}`: "m/a 1,m/b 2,",
		`{}`:                                   "",
		`{"objects":[{"name":"../etc"}]}`:      "corrupt",
		`{"objects":[{"name":"a","size":-1}]}`: "corrupt",
		`<html>`:                               "corrupt",
		`{"objects":[`:                         "corrupt",
	} {
		write(t, dir, map[string]string{"index.json": content})
		got := ""
		list, err := r.List(t.Context(), "m/")
		for _, i := range list {
			got += fmt.Sprintf("%s %d,", i.Name, i.Size)
		}
		if err != nil {
			got = fault.ClassOf(err).String()
		}
		if got != want {
			t.Errorf("%s: %q, %v", content, got, err)
		}
	}
}

// TestChanged: an object that is replaced while it is read gives an error, never a mixture.
func TestChanged(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": strings.Repeat("old ", 1000)})
	r := connect(t, start(t, httplab.Config{Dir: dir}).URL, nil)
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"a": strings.Repeat("new ", 1000)})
	later := time.Now().Add(time.Second) // the clock of file systems may not have moved on by itself
	if err := os.Chtimes(filepath.Join(dir, "a"), later, later); err != nil {
		t.Fatal(err)
	}
	if n, err := s.ReadAt(make([]byte, 100), 100); n != 0 || !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "changed while it was read") {
		t.Error(n, err)
	}
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(make([]byte, 100), 100); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestWholeObject(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 1<<16)
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": content})
	server := start(t, httplab.Config{Dir: dir})
	s, err := connect(t, server.URL, nil).Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil || string(b) != content {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if sent := server.Sent(); sent != int64(len(content)) {
		t.Errorf("%d bytes sent for %d", sent, len(content))
	}
}
