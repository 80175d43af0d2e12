package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/attempt"
	"hayloft/lab/httplab"
)

// quick tries again soon. It waits long for what comes late: the tests of servers that say nothing have a limit of their own.
var quick = attempt.Patience{Stall: 2 * time.Minute, Attempts: 3, First: time.Millisecond, Longest: 10 * time.Millisecond}

// liar serves one object at every name, with the faults that a test wants.
type liar struct {
	content string
	gets    atomic.Int64
	// answer does a GET in the liar's way, or says that it did nothing. n counts GETs from 1.
	answer func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool
	head   func(w nethttp.ResponseWriter, r *nethttp.Request) bool
	etag   string
}

func (l *liar) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	if l.etag != "" {
		w.Header().Set("ETag", l.etag)
	}
	if r.Method == nethttp.MethodHead && l.head != nil && l.head(w, r) {
		return
	}
	if r.Method == nethttp.MethodGet && l.answer != nil && l.answer(w, r, l.gets.Add(1)) {
		return
	}
	nethttp.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), strings.NewReader(l.content))
}

// part answers 206 with a range of the liar's choice.
func part(w nethttp.ResponseWriter, contentRange, body string, length int) {
	w.Header().Set("Content-Range", contentRange)
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(nethttp.StatusPartialContent)
	io.WriteString(w, body)
	if len(body) < length {
		nethttp.NewResponseController(w).Flush()
	}
}

func status(code int) func(nethttp.ResponseWriter, *nethttp.Request, int64) bool {
	return func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool { w.WriteHeader(code); return true }
}

func hang(r *nethttp.Request) { <-r.Context().Done() }

func abort() { panic(nethttp.ErrAbortHandler) }

func TestFaults(t *testing.T) {
	content := strings.Repeat("0123456789", 100)
	for _, row := range []struct {
		name   string
		etag   string
		answer func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool
		head   func(w nethttp.ResponseWriter, r *nethttp.Request) bool
		class  fault.Class
		says   string // "": the read succeeds
		gets   int64  // 0: not checked
		stall  time.Duration
	}{
		{name: "500 twice", gets: 3, answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, n int64) bool {
			if n < 3 {
				w.WriteHeader(500)
			}
			return n < 3
		}},
		{name: "503 for ever", answer: status(503), class: fault.Unavailable, says: "gave up after 3 attempts: the server answered 503", gets: 3},
		{name: "429 with a date far away", gets: 2, answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, n int64) bool {
			if n == 1 {
				w.Header().Set("Retry-After", "86400")
				w.WriteHeader(429)
			}
			return n == 1
		}},
		{name: "404", answer: status(404), class: fault.NotFound, says: "404", gets: 1},
		{name: "410", answer: status(410), class: fault.NotFound, says: "410", gets: 1},
		{name: "401", answer: status(401), class: fault.Permission, says: "401", gets: 1},
		{name: "403", answer: status(403), class: fault.Permission, says: "403", gets: 1},
		{name: "412", answer: status(412), class: fault.Corrupt, says: "changed while it was read", gets: 1},
		{name: "416", answer: status(416), class: fault.Corrupt, says: "changed while it was read", gets: 1},
		{name: "418", answer: status(418), class: fault.Unsupported, says: "418", gets: 1},
		{name: "no ranges", class: fault.Unsupported, says: "does not serve ranges", gets: 1,
			answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
				io.WriteString(w, content)
				return true
			}},
		{name: "says no ranges", class: fault.Unsupported, says: "Accept-Ranges: none", head: func(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
			w.Header().Set("Accept-Ranges", "none")
			w.Header().Set("Content-Length", "1000")
			return true
		}},
		{name: "another etag", etag: `"1"`, class: fault.Corrupt, says: `its ETag was "1" and is "2"`, gets: 1,
			answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
				w.Header().Set("ETag", `"2"`)
				part(w, "bytes 0-999/1000", content, 1000)
				return true
			}},
		{name: "weak etag", etag: `W/"1"`},
		{name: "another date", class: fault.Corrupt, says: "it was of", answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
			w.Header().Set("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
			part(w, "bytes 0-999/1000", content, 1000)
			return true
		}},
		{name: "another length", class: fault.Corrupt, says: "it had 1000 bytes and has 2000", answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
			part(w, "bytes 0-999/2000", content, 1000)
			return true
		}},
		{name: "another range", class: fault.Unsupported, says: "sent bytes 1 to 999 when asked for 0 to 999", answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
			part(w, "bytes 1-999/1000", content[1:], 999)
			return true
		}},
		{name: "no range", class: fault.Unsupported, says: "Content-Range", answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
			w.WriteHeader(206)
			io.WriteString(w, content)
			return true
		}},
		{name: "compressed", class: fault.Unsupported, says: "Content-Encoding", answer: func(w nethttp.ResponseWriter, _ *nethttp.Request, _ int64) bool {
			w.Header().Set("Content-Encoding", "gzip")
			part(w, "bytes 0-999/1000", content, 1000)
			return true
		}},
		{name: "pieces", gets: 10, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			a := (n - 1) * 100
			part(w, fmt.Sprintf("bytes %d-%d/*", a, a+99), content[a:a+100], 100)
			return true
		}},
		{name: "short bodies", gets: 3, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			if n == 3 {
				return false
			}
			a := (n - 1) * 100
			part(w, fmt.Sprintf("bytes %d-999/1000", a), content[a:a+100], 1000-int(a))
			abort()
			return true
		}},
		{name: "always short", class: fault.Unavailable, says: "unexpected EOF", gets: 3, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			part(w, fmt.Sprintf("bytes %d-999/1000", n-1), "0", 1001-int(n))
			abort()
			return true
		}},
		{name: "chunked and short", gets: 2, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Range", "bytes 0-999/1000")
			w.WriteHeader(206)
			io.WriteString(w, content[:10])
			return true
		}},
		{name: "hangs up", gets: 2, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			if n == 1 {
				abort()
			}
			return false
		}},
		{name: "stalls before the header", gets: 2, stall: 5 * time.Second, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			if n == 1 {
				hang(r)
			}
			return false
		}},
		{name: "stalls in the body", class: fault.Unavailable, says: "no bytes came for 5s", gets: 3, stall: 5 * time.Second, answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			part(w, fmt.Sprintf("bytes %d-999/1000", n-1), "0", 1001-int(n))
			hang(r)
			return true
		}},
		{name: "no HEAD", head: func(w nethttp.ResponseWriter, _ *nethttp.Request) bool { w.WriteHeader(405); return true }},
		{name: "HEAD forbidden", head: func(w nethttp.ResponseWriter, _ *nethttp.Request) bool { w.WriteHeader(403); return true }},
		{name: "HEAD without length", head: func(w nethttp.ResponseWriter, _ *nethttp.Request) bool {
			w.Header().Set("Transfer-Encoding", "chunked")
			w.WriteHeader(200)
			return true
		}},
		{name: "redirects for ever", class: fault.Unsupported, says: "more than 5 redirects", head: func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
			nethttp.Redirect(w, r, r.URL.Path, nethttp.StatusFound)
			return true
		}},
		{name: "redirect", answer: func(w nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
			if n == 1 {
				nethttp.Redirect(w, r, "/elsewhere", nethttp.StatusTemporaryRedirect)
			}
			return n == 1
		}, gets: 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := &liar{content: content, answer: row.answer, head: row.head, etag: row.etag}
			r := connect(t, start(t, httplab.Config{Handler: l}).URL, nil)
			r.patience = quick
			p := make([]byte, len(content))
			s, err := r.Open(t.Context(), "a")
			if row.stall != 0 {
				r.patience.Stall = row.stall
			}
			if err == nil {
				_, err = s.ReadAt(p, 0)
			}
			switch {
			case row.says == "" && (err != nil || string(p) != content):
				t.Errorf("%v; content right: %v", err, string(p) == content)
			case row.says != "" && (!fault.Is(err, row.class) || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), ": object a: ")):
				t.Errorf("%v: %v", fault.ClassOf(err), err)
			}
			if got := l.gets.Load(); row.gets != 0 && got != row.gets {
				t.Errorf("%d requests, want %d", got, row.gets)
			}
		})
	}
}

// TestDowngrade: credentials and content do not go from an encrypted place to one that is not.
func TestDowngrade(t *testing.T) {
	plain := start(t, httplab.Config{Handler: &liar{content: "x"}})
	s := start(t, httplab.Config{CertDir: t.TempDir(), Handler: nethttp.RedirectHandler(plain.URL+"/a", nethttp.StatusFound)})
	r := connect(t, s.URL, map[string]string{"CA_FILE": s.CAFile})
	if _, err := r.Stat(t.Context(), "a"); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "redirected from https to http://") {
		t.Error(err)
	}
	if plain.Requests() != 0 {
		t.Error("the other place was asked")
	}
}

// TestEndedRead: whoever opened can leave while a server says nothing.
func TestEndedRead(t *testing.T) {
	ctx := expiring{t.Context(), make(chan struct{})}
	l := &liar{content: "0123456789", answer: func(_ nethttp.ResponseWriter, r *nethttp.Request, n int64) bool {
		if n == 1 {
			close(ctx.done)
		}
		hang(r)
		return true
	}}
	r := connect(t, start(t, httplab.Config{Handler: l}).URL, nil)
	r.patience.Stall = time.Hour
	s, err := r.Open(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.ReadAt(make([]byte, 10), 0); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) || l.gets.Load() != 1 {
		t.Errorf("after %d requests: %v", l.gets.Load(), err)
	}
}

// expiring is a context whose deadline passes when done is closed.
type expiring struct {
	context.Context
	done chan struct{}
}

func (e expiring) Done() <-chan struct{} { return e.done }

func (e expiring) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// TestConnections: many reads share a few connections, which are used again.
func TestConnections(t *testing.T) {
	var most, now atomic.Int64
	content := bytes.Repeat([]byte("x"), 1<<20)
	remote := make(chan string, 1000)
	l := &liar{content: string(content), answer: func(_ nethttp.ResponseWriter, r *nethttp.Request, _ int64) bool {
		n := now.Add(1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		defer now.Add(-1)
		remote <- r.RemoteAddr
		time.Sleep(2 * time.Millisecond)
		return false
	}}
	r := connect(t, start(t, httplab.Config{Handler: l}).URL, nil)
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	const readers = 100
	for i := range readers {
		go func() {
			for k := range 3 {
				if _, err := s.ReadAt(make([]byte, 1000), int64(i*5000+k*1000)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range readers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	close(remote)
	connections := map[string]bool{}
	for a := range remote {
		connections[a] = true
	}
	if most.Load() > maxRequests || len(connections) > 2*maxRequests {
		t.Errorf("%d requests at a time on %d connections", most.Load(), len(connections))
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 0-499/*", "bytes */0", "bytes 5-4/9", "bytes -1-4/9", "bytes 0-9/5", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseContentRange(s)
		if err == nil && (c.first < 0 || c.last < c.first || c.total >= 0 && c.last >= c.total) {
			t.Errorf("%q: %+v", s, c)
		}
	})
}
