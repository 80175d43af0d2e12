// Package s3lab is a simulator of an S3 server for tests: one bucket in memory, path-style addresses, signatures of version
// 4 in the header checked, multipart uploads with copies, ranges, conditions and lists of version 2, as Amazon's "API
// Reference" describes them. Faults are what a test wants. It is no storage, and nobody's benchmark.
package s3lab

import (
	"net/http"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hayloft/lab/httplab"
)

// Config says how the server is.
type Config struct {
	Bucket, Region       string // "": "images" and "us-east-1"
	AccessKey, SecretKey string // "": "hay" and "s3cret"
	// CertDir is a directory for the certificate (ca.pem); "": plain http.
	CertDir string
	// Capacity is what objects and parts may have in bytes; 0: no limit.
	Capacity int64
	// Unconditional servers do not know If-None-Match, as older ones.
	Unconditional bool
	// Page is how many entries a list has at most; 0: 1000.
	Page int
	// MinPart is what each part but the last must have in bytes; 0: 5 MiB.
	MinPart int64
}

// Fault is what becomes of a request instead of what it asks for.
type Fault struct {
	// Status answers with an error of that status and Code.
	Status int
	Code   string
	// Cut ends the connection: before anything is done, or after so many bytes of the answer's body when AfterBytes > 0.
	Cut        bool
	AfterBytes int64
	// Late is as Cut, but after the request was carried out: the client does not know.
	Late bool
	// Delay is waited before the request is looked at.
	Delay time.Duration
}

// Server runs until Close.
type Server struct {
	*httplab.Server
	Endpoint string // URL of the bucket

	config   Config
	mu       sync.Mutex
	objects  map[string]*object
	uploads  map[string]*upload
	serial   int
	used     int64
	fault    func(r *http.Request) *Fault
	received atomic.Int64
	log      []string
}

type object struct {
	data     []byte
	etag     string
	modified time.Time
	metadata map[string]string // by canonical name of the header
}

type upload struct {
	key      string
	began    time.Time
	metadata map[string]string
	parts    map[int]*object
}

// Start serves.
func Start(c Config) (*Server, error) {
	for _, d := range []struct {
		field *string
		value string
	}{{&c.Bucket, "images"}, {&c.Region, "us-east-1"}, {&c.AccessKey, "hay"}, {&c.SecretKey, "s3cret"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.Page == 0 {
		c.Page = 1000
	}
	if c.MinPart == 0 {
		c.MinPart = 5 << 20
	}
	s := &Server{config: c, objects: map[string]*object{}, uploads: map[string]*upload{}}
	inner, err := httplab.Start(httplab.Config{Handler: s, CertDir: c.CertDir})
	if err != nil {
		return nil, err
	}
	s.Server = inner
	s.Endpoint = inner.URL + "/" + c.Bucket
	return s, nil
}

// SetFault has f asked for each request from now on; nil, as what f gives when nothing is wrong, ends that.
func (s *Server) SetFault(f func(r *http.Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Received is how many bytes of bodies came.
func (s *Server) Received() int64 { return s.received.Load() }

// Keys lists all objects, hidden ones too.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for k := range s.objects {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// Uploads is how many multipart uploads there are that nobody completed or aborted.
func (s *Server) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// Put makes an object behind the back of whoever uses the server.
func (s *Server) Put(key, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store(key, newObject([]byte(content)))
}

// Age makes uploads and objects so much older.
func (s *Server) Age(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.uploads {
		u.began = u.began.Add(-by)
	}
	for _, o := range s.objects {
		o.modified = o.modified.Add(-by)
	}
}

// Operations gives what was asked for since the last call, as "METHOD operation key", with the operation as the
// API Reference names it.
func (s *Server) Operations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// key is the object that a request is about, "" for the bucket.
func (s *Server) key(r *http.Request) (string, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, "/"+s.config.Bucket)
	if !ok || path != "" && path[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(path, "/"), true
}
