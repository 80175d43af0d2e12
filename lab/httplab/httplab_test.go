package httplab

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestRate: all connections together get what one would, and what is sent is counted.
func TestRate(t *testing.T) {
	dir := t.TempDir()
	const size, rate, readers = 128 << 10, 2 << 20, 4
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Start(Config{Dir: dir, Rate: rate, CertDir: t.TempDir(), HTTP2: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	began := time.Now()
	var group sync.WaitGroup
	for range readers {
		group.Go(func() {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
			defer transport.CloseIdleConnections()
			response, err := (&http.Client{Transport: transport}).Get(s.URL + "/a")
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			if n, err := io.Copy(io.Discard, response.Body); err != nil || n != size {
				t.Error(n, err)
			}
		})
	}
	group.Wait()
	if got, least := time.Since(began), time.Duration(readers*size*int64(time.Second)/rate)-burst; got < least {
		t.Errorf("took %v, at %d bytes a second it is at least %v", got, int64(rate), least)
	}
	if s.Sent() != readers*size || s.Wire() <= s.Sent() || s.Requests() != readers {
		t.Errorf("%d bytes in %d on the wire, %d requests", s.Sent(), s.Wire(), s.Requests())
	}
}

func TestNothingOutside(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	s, err := Start(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, path := range []string{"/link", "/../../etc/passwd", "/", "/gone"} {
		response, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode < 400 {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if _, err := Start(Config{Dir: "relative"}); err == nil {
		t.Error("a relative directory")
	}
}
