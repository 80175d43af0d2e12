package s3

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/lab/s3lab"
)

// nth makes a fault of the first so many requests that match.
func nth(times int64, match func(r *http.Request) bool, f s3lab.Fault) func(*http.Request) *s3lab.Fault {
	var seen atomic.Int64
	return func(r *http.Request) *s3lab.Fault {
		if match(r) && seen.Add(1) <= times {
			return &f
		}
		return nil
	}
}

func get(r *http.Request) bool      { return r.Method == "GET" && r.Header.Get("Range") != "" }
func putPart(r *http.Request) bool  { return r.Method == "PUT" && r.URL.Query().Has("partNumber") }
func complete(r *http.Request) bool { return r.Method == "POST" && r.URL.Query().Has("uploadId") }
func begin(r *http.Request) bool    { return r.Method == "POST" && r.URL.Query().Has("uploads") }
func putAll(r *http.Request) bool   { return r.Method == "PUT" && !r.URL.Query().Has("partNumber") }
func any(*http.Request) bool        { return true }

func TestReadFaults(t *testing.T) {
	content := random(4, 1<<20)
	for _, row := range []struct {
		name  string
		fault func(*http.Request) *s3lab.Fault
		class fault.Class
		says  string // "": the read succeeds
		stall time.Duration
	}{
		{"500 twice", nth(2, get, s3lab.Fault{Status: 500, Code: "InternalError"}), 0, "", 0},
		{"slow down", nth(2, get, s3lab.Fault{Status: 503, Code: "SlowDown"}), 0, "", 0},
		{"503 for ever", nth(99, get, s3lab.Fault{Status: 503, Code: "ServiceUnavailable"}), fault.Unavailable, "gave up after 3 attempts", 0},
		{"cut twice", nth(2, get, s3lab.Fault{Cut: true}), 0, "", 0},
		{"cut in the body, again and again", nth(3, get, s3lab.Fault{Cut: true, AfterBytes: 300_000}), 0, "", 0},
		{"cut for ever", nth(99, get, s3lab.Fault{Cut: true}), fault.Unavailable, "gave up after 3 attempts", 0},
		{"stalls", nth(1, get, s3lab.Fault{Delay: time.Hour}), 0, "", 5 * time.Second},
		{"stalls for ever", nth(99, get, s3lab.Fault{Delay: time.Hour}), fault.Unavailable, "the server said nothing for 2s", 2 * time.Second},
		{"forbidden", nth(99, get, s3lab.Fault{Status: 403, Code: "AccessDenied"}), fault.Permission, "AccessDenied", 0},
		{"gone", nth(99, get, s3lab.Fault{Status: 404, Code: "NoSuchKey"}), fault.NotFound, "NoSuchKey", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, s3lab.Config{})
			s.Put("a", string(content))
			r := connect(t, s, "")
			r.patience = quick
			o, err := r.Open(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			s.SetFault(row.fault)
			if row.stall != 0 {
				r.patience.Stall = row.stall
			}
			p := make([]byte, len(content))
			_, err = o.ReadAt(p, 0)
			switch {
			case row.says == "" && (err != nil || !bytes.Equal(p, content)):
				t.Errorf("%v; content right: %v", err, bytes.Equal(p, content))
			case row.says != "" && (!fault.Is(err, row.class) || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), ": object a: ")):
				t.Errorf("%v: %v", fault.ClassOf(err), err)
			}
		})
	}
}

// TestChanged: an object that is replaced while it is read gives an error, never a mixture.
func TestChanged(t *testing.T) {
	s := start(t, s3lab.Config{})
	s.Put("a", strings.Repeat("old ", 1000))
	r := connect(t, s, "")
	o, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	s.Put("a", strings.Repeat("new ", 1000))
	if n, err := o.ReadAt(make([]byte, 100), 100); n != 0 || !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "changed while it was read") {
		t.Error(n, err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.ReadAt(make([]byte, 100), 100); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// TestWriteFaults: an object is whole or not there, and after Abort nothing is left, as far as the server can be reached.
func TestWriteFaults(t *testing.T) {
	large, small := random(5, int(firstPart+99)), random(6, 1000)
	for _, row := range []struct {
		name    string
		content []byte
		fault   func(*http.Request) *s3lab.Fault
		class   fault.Class
		says    string // "": it succeeds
	}{
		{"parts fail twice", large, nth(2, putPart, s3lab.Fault{Status: 500, Code: "InternalError"}), 0, ""},
		{"parts are cut", large, nth(2, putPart, s3lab.Fault{Cut: true}), 0, ""},
		{"answers to parts are lost", large, nth(2, putPart, s3lab.Fault{Late: true}), 0, ""},
		{"parts never", large, nth(99, putPart, s3lab.Fault{Cut: true}), fault.Unavailable, "gave up"},
		{"full", large, nth(99, putPart, s3lab.Fault{Status: 507, Code: "XMinioStorageFull"}), fault.OutOfSpace, "XMinioStorageFull"},
		{"may not", large, nth(99, begin, s3lab.Fault{Status: 403, Code: "AccessDenied"}), fault.Permission, "AccessDenied"},
		{"completion fails", large, nth(1, complete, s3lab.Fault{Status: 503, Code: "SlowDown"}), 0, ""},
		{"completion in conflict", large, nth(1, complete, s3lab.Fault{Status: 409, Code: "ConditionalRequestConflict"}), 0, ""},
		{"answer to the completion is lost", large, nth(1, complete, s3lab.Fault{Late: true}), 0, ""},
		{"completion never", large, nth(99, complete, s3lab.Fault{Cut: true}), fault.Unavailable, "gave up"},
		{"small: cut", small, nth(1, putAll, s3lab.Fault{Cut: true}), 0, ""},
		{"small: answer lost", small, nth(1, putAll, s3lab.Fault{Late: true}), 0, ""},
		{"small: full", small, nth(99, putAll, s3lab.Fault{Status: 507, Code: "InsufficientStorage"}), fault.OutOfSpace, "InsufficientStorage"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, s3lab.Config{CertDir: t.TempDir()})
			r := connect(t, s, "")
			r.patience = quick
			w, err := r.Create(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			s.SetFault(row.fault)
			if _, err := w.WriteAt(row.content, 0); err != nil {
				t.Fatal(err)
			}
			err = w.Commit(t.Context())
			if row.says != "" && (!fault.Is(err, row.class) || !strings.Contains(err.Error(), row.says)) {
				t.Errorf("%v: %v", fault.ClassOf(err), err)
			}
			s.SetFault(nil)
			if row.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				check(t, r, "a", row.content)
			} else if err := w.Abort(); err != nil || len(s.Keys()) != 0 {
				t.Errorf("%v; there is %q", err, s.Keys())
			}
			if n := s.Uploads(); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
		})
	}
}

// TestFullServer: what was sent of an object that does not fit is given back.
func TestFullServer(t *testing.T) {
	s := start(t, s3lab.Config{CertDir: t.TempDir(), Capacity: 40 << 20})
	r := connect(t, s, "")
	s.Put("a", string(random(7, 24<<20)))
	w, _, err := r.CreateFrom(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); !fault.Is(err, fault.OutOfSpace) {
		t.Error(err)
	}
	if err := w.Abort(); err != nil || s.Uploads() != 0 {
		t.Error(s.Uploads(), err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if w, err = r.Create(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.WriteAt(make([]byte, 1000), 30<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

// TestServerGoes: in the middle of a write and of a clone.
func TestServerGoes(t *testing.T) {
	for _, clone := range []bool{false, true} {
		s := start(t, s3lab.Config{})
		s.Put("a", string(random(8, 24<<20)))
		r := connect(t, s, "")
		r.patience = quick
		var w repository.Writer
		var err error
		if clone {
			w, _, err = r.CreateFrom(t.Context(), "a", "b")
		} else {
			w, err = r.Create(t.Context(), "b")
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(random(9, int(firstPart)), 100); err != nil {
			t.Fatal(err)
		}
		s.SetFault(nth(1_000_000, any, s3lab.Fault{Cut: true}))
		if err := w.Commit(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "object b") {
			t.Errorf("%v: %v", fault.ClassOf(err), err)
		}
		if err := w.Abort(); err != nil && !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v: %v", fault.ClassOf(err), err)
		}
		s.SetFault(nil)
		s.Age(2 * deadAfter)
		if err := r.Sweep(t.Context(), ""); err != nil || s.Uploads() != 0 || len(s.Keys()) != 1 {
			t.Errorf("%d uploads, %q, %v", s.Uploads(), s.Keys(), err)
		}
	}
}

// TestFullSpool: the error says whose space it was.
func TestFullSpool(t *testing.T) {
	s := start(t, s3lab.Config{})
	r, err := New(disk.Repository{ID: 7, Path: s.Endpoint, Options: map[string]string{"SPOOL_DIR": t.TempDir() + "/gone",
		"ACCESS_KEY_ID": "hay", "SECRET_KEY_FILE": keyFile(t, "s3cret"), "PLAIN_CREDENTIALS": "YES"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 { // the name is free again
		if _, err := r.Create(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "SPOOL_DIR") || fault.Is(err, fault.Busy) {
			t.Error(err)
		}
	}
}

// TestCommitEnds: a caller who leaves in the middle of a commit gets no object.
func TestCommitEnds(t *testing.T) {
	s := start(t, s3lab.Config{})
	r := connect(t, s, "")
	s.Put("a", string(random(10, 24<<20)))
	w, _, err := r.CreateFrom(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.SetFault(func(r *http.Request) *s3lab.Fault {
		if complete(r) || putPart(r) {
			cancel()
			return &s3lab.Fault{Delay: time.Second}
		}
		return nil
	})
	if err := w.Commit(ctx); err == nil {
		t.Error("committed")
	}
	s.SetFault(nil)
	if err := w.Abort(); err != nil || s.Uploads() != 0 || len(s.Keys()) != 1 {
		t.Errorf("%d uploads, %q, %v", s.Uploads(), s.Keys(), err)
	}
}

// TestAbortWhileItBegins: an upload that the server begins while its writer leaves is aborted.
func TestAbortWhileItBegins(t *testing.T) {
	s := start(t, s3lab.Config{})
	r := connect(t, s, "")
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	came, answer := make(chan struct{}), make(chan struct{})
	s.SetFault(func(r *http.Request) *s3lab.Fault {
		if begin(r) {
			close(came)
			<-answer
		}
		return nil
	})
	if _, err := w.WriteAt(random(11, int(firstPart)), 0); err != nil {
		t.Fatal(err)
	}
	<-came
	aborted := make(chan error)
	go func() { aborted <- w.Abort() }()
	<-w.(*writer).ctx.Done()
	close(answer)
	if err := <-aborted; err != nil || s.Uploads() != 0 {
		t.Errorf("%d uploads, %v", s.Uploads(), err)
	}
	if log := s.Operations(); count(log, "AbortMultipartUpload") != 1 {
		t.Errorf("%q", log)
	}
}
