// Package httplab is a web server for tests and benchmarks: it serves a directory with ranges and ETags, at a limited
// rate shared by all connections, and counts what it sends.
package httplab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what to serve and how.
type Config struct {
	Dir string // absolute; what is below it is served
	// Handler answers instead of Dir when it is not nil.
	Handler http.Handler
	// Rate limits what goes out on all connections together, in bytes a second, headers and encryption included; 0: none.
	Rate int64
	// Latency is waited before each response.
	Latency time.Duration
	// CertDir is a directory for the self-signed certificate (ca.pem); "": plain http.
	CertDir string
	// HTTP2 is offered besides HTTP/1.1, where there is a certificate.
	HTTP2 bool
	// Listen is the address; "": a free port of 127.0.0.1.
	Listen string
	// Also makes a further listener on the address that Listen came to, elsewhere: in another network namespace. It
	// shares the rate. May be nil.
	Also func(address string) (net.Listener, error)
}

// Server runs until Close.
type Server struct {
	URL    string // without a slash at the end
	CAFile string // the certificate in PEM; "" without one

	server   *http.Server
	serving  sync.WaitGroup
	bodies   atomic.Int64
	wire     atomic.Int64
	requests atomic.Int64
}

// Start listens and serves.
func Start(c Config) (*Server, error) {
	if c.Handler == nil && !filepath.IsAbs(c.Dir) {
		return nil, fmt.Errorf("httplab: directory %q is not absolute", c.Dir)
	}
	address := c.Listen
	if address == "" {
		address = "127.0.0.1:0"
	}
	inner, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("httplab: %w", err)
	}
	s := &Server{URL: "http://" + inner.Addr().String()}
	s.server = &http.Server{Handler: s.handler(c), ErrorLog: log.New(discard{}, "", 0)}
	inners := []net.Listener{inner}
	if c.Also != nil {
		other, err := c.Also(inner.Addr().String())
		if err != nil {
			inner.Close()
			return nil, fmt.Errorf("httplab: %w", err)
		}
		inners = append(inners, other)
	}
	if c.CertDir != "" {
		s.URL = "https://" + inner.Addr().String()
		s.CAFile = filepath.Join(c.CertDir, "ca.pem")
		certificate, err := selfSigned(s.CAFile)
		if err != nil {
			for _, l := range inners {
				l.Close()
			}
			return nil, fmt.Errorf("httplab: %w", err)
		}
		s.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
		s.server.Protocols = new(http.Protocols)
		s.server.Protocols.SetHTTP1(true)
		s.server.Protocols.SetHTTP2(c.HTTP2)
	}
	shared := newBucket(c.Rate)
	for _, inner := range inners {
		l := &listener{Listener: inner, bucket: shared, wire: &s.wire}
		s.serving.Go(func() {
			if c.CertDir != "" {
				s.server.ServeTLS(l, "", "")
			} else {
				s.server.Serve(l)
			}
		})
	}
	return s, nil
}

// Sent is how many bytes of bodies were sent, Wire of everything, encryption and headers included.
func (s *Server) Sent() int64 { return s.bodies.Load() }

// Wire is how many bytes went out on all connections.
func (s *Server) Wire() int64 { return s.wire.Load() }

// Requests is how many requests came.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Close ends all connections and waits for the listener.
func (s *Server) Close() error {
	err := s.server.Close()
	s.serving.Wait()
	return err
}

func (s *Server) handler(c Config) http.Handler {
	inner := c.Handler
	if inner == nil {
		inner = Files(c.Dir)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if c.Latency > 0 {
			select {
			case <-time.After(c.Latency):
			case <-r.Context().Done():
				return
			}
		}
		inner.ServeHTTP(&counter{ResponseWriter: w, n: &s.bodies}, r)
	})
}

// Files serves the directory dir, which is absolute; the ETag of a file is made of its size and time.
func Files(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			http.Error(w, "no directory", http.StatusServiceUnavailable)
			return
		}
		defer root.Close()
		file, err := root.Open(filepath.Clean("./" + r.URL.Path))
		if err != nil {
			status := http.StatusForbidden
			if errors.Is(err, fs.ErrNotExist) {
				status = http.StatusNotFound
			}
			http.Error(w, http.StatusText(status), status)
			return
		}
		defer file.Close()
		fi, err := file.Stat()
		if err != nil || !fi.Mode().IsRegular() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, fi.Size(), fi.ModTime().UnixNano()))
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", fi.ModTime(), file)
	})
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p))) // before the other side can have them
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n - len(p)))
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// selfSigned makes a certificate for loopback and writes it to path.
func selfSigned(path string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "httplab"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(path, text, 0o644)
}

// wait is what a bucket's writer does until its bytes may go.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return net.ErrClosed
	}
}
