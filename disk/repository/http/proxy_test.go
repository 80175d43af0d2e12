package http

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/lab/httplab"
)

// TestConnectProxy: through a proxy with a password, encrypted and not, in tunnels and as plain requests.
func TestConnectProxy(t *testing.T) {
	dir, secrets := t.TempDir(), t.TempDir()
	content := strings.Repeat("through a proxy ", 50_000)
	write(t, dir, map[string]string{"a": content})
	write(t, secrets, map[string]string{"right": "t0psecret\n", "wrong": "geheim"})
	for _, name := range []string{"right", "wrong"} {
		if err := os.Chmod(filepath.Join(secrets, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificates := t.TempDir()
	for _, row := range []struct {
		name             string
		encrypted, proxy bool // server and proxy over TLS
	}{{"tunnel", true, false}, {"plain", false, false}, {"tunnel in tls", true, true}} {
		t.Run(row.name, func(t *testing.T) {
			c := httplab.Config{Dir: dir}
			if row.encrypted {
				c.CertDir = t.TempDir()
			}
			s := start(t, c)
			options := map[string]string{"PLAIN_CREDENTIALS": "YES", "PROXY_PASSWORD_FILE": filepath.Join(secrets, "right")}
			pc := httplab.Config{}
			if row.proxy {
				pc.CertDir = t.TempDir()
			}
			p, err := httplab.StartProxy(pc, "hay", "t0psecret")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			options["PROXY"] = strings.Replace(p.URL, "://", "://hay@", 1)
			options["CA_FILE"] = bundle(t, certificates, s.CAFile, p.CAFile)
			r := connect(t, s.URL, options)
			r.patience = quick
			read := func() error {
				o, err := r.Open(t.Context(), "a")
				if err != nil {
					return err
				}
				b := make([]byte, o.Size())
				_, err = o.ReadAt(b, 0)
				if err == nil && string(b) != content {
					t.Error("the content differs")
				}
				return err
			}
			if err := read(); err != nil {
				t.Fatal(err)
			}
			if row.encrypted && p.Tunnels() == 0 || !row.encrypted && p.Forwards() == 0 {
				t.Errorf("%d tunnels, %d requests", p.Tunnels(), p.Forwards())
			}
			p.Cut() // and is asked for another
			if err := read(); err != nil {
				t.Errorf("after the tunnels ended: %v", err)
			}
			for status, class := range map[int]fault.Class{502: fault.Unavailable, 403: fault.Permission, 407: fault.Permission} {
				p.Cut()
				r.Close()
				p.Refuse(status)
				err := read()
				if !fault.Is(err, class) || strings.Contains(err.Error(), "t0psecret") {
					t.Errorf("%d: %v: %v", status, fault.ClassOf(err), err)
				}
				p.Refuse(0)
			}
			options["PROXY_PASSWORD_FILE"] = filepath.Join(secrets, "wrong")
			r = connect(t, s.URL, options)
			r.patience = quick
			if err := read(); !fault.Is(err, fault.Permission) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("a wrong password: %v: %v", fault.ClassOf(err), err)
			}
			options["PROXY_PASSWORD_FILE"] = filepath.Join(secrets, "none")
			r = connect(t, s.URL, options)
			r.patience = quick
			if err := read(); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "PROXY_PASSWORD_FILE") {
				t.Errorf("no password: %v: %v", fault.ClassOf(err), err)
			}
			p.Close()
			options["PROXY_PASSWORD_FILE"] = filepath.Join(secrets, "right")
			r = connect(t, s.URL, options)
			r.patience = quick
			if err := read(); !fault.Is(err, fault.Unavailable) {
				t.Errorf("no proxy: %v: %v", fault.ClassOf(err), err)
			}
		})
	}
}

// bundle has the certificates of all files.
func bundle(t *testing.T, dir string, files ...string) string {
	t.Helper()
	var all []byte
	for _, f := range files {
		if f != "" {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b...)
		}
	}
	if all == nil {
		return ""
	}
	path := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.WriteFile(path, all, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBadProxies(t *testing.T) {
	for _, row := range []struct {
		options map[string]string
		says    string
	}{
		{map[string]string{"PROXY": "proxy:3128"}, "is not http://"},
		{map[string]string{"PROXY": "socks5://proxy:1080"}, "is not http://"},
		{map[string]string{"PROXY": "http://proxy:3128/x"}, "is not http://"},
		{map[string]string{"PROXY": "http://hay:geheim@proxy:3128"}, "PROXY_PASSWORD_FILE"},
		{map[string]string{"PROXY": "http://hay:geheim@pro xy:3128"}, "is no URL"},
		{map[string]string{"PROXY": "http://hay@proxy:3128"}, "go together"},
		{map[string]string{"PROXY": "http://proxy:3128", "PROXY_PASSWORD_FILE": "/x"}, "go together"},
		{map[string]string{"PROXY": "http://hay@proxy:3128", "PROXY_PASSWORD_FILE": "/x"}, "PLAIN_CREDENTIALS"},
		{map[string]string{"PROXY_PASSWORD_FILE": "/x"}, "without PROXY"},
	} {
		_, err := New(disk.Repository{ID: 7, Path: "https://host/", Options: row.options})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7") || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%v: %v", row.options, err)
		}
	}
}
