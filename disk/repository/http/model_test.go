package http

import (
	"fmt"
	"io"
	"math/rand/v2"
	nethttp "net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/disk/repository/attempt"
	"hayloft/lab/httplab"
)

// TestNeverWrong: whatever a server does to its answers, a read gives the right bytes or an error.
func TestNeverWrong(t *testing.T) {
	var b strings.Builder
	for b.Len() < 300_000 {
		fmt.Fprintf(&b, "%x.", b.Len())
	}
	content := b.String()
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	l := &liar{content: content, etag: `"1"`}
	l.answer = func(w nethttp.ResponseWriter, r *nethttp.Request, _ int64) bool {
		var first, last int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			t.Error(err)
		}
		whole := fmt.Sprintf("bytes %d-%d/%d", first, last, len(content))
		body := content[first : last+1]
		switch draw(12) {
		case 0:
			w.WriteHeader(502)
		case 1: // short
			part(w, whole, body[:draw(len(body))], len(body))
			abort()
		case 2: // less than was asked for
			n := 1 + draw(len(body))
			part(w, fmt.Sprintf("bytes %d-%d/%d", first, first+n-1, len(content)), body[:n], n)
		case 3: // another place
			part(w, fmt.Sprintf("bytes %d-%d/%d", first+1, last+1, len(content)), body, len(body))
		case 4: // a body longer than it says
			part(w, fmt.Sprintf("bytes %d-%d/%d", first, first, len(content)), body, len(body))
		case 5: // another version
			w.Header().Set("ETag", `"2"`)
			part(w, whole, strings.Repeat("!", len(body)), len(body))
		case 6: // all of it
			io.WriteString(w, content)
		case 7:
			abort()
		default:
			return false
		}
		return true
	}
	r := connect(t, start(t, httplab.Config{Handler: l}).URL, nil)
	r.patience = attempt.Patience{Stall: time.Minute, Attempts: 10, First: time.Microsecond, Longest: time.Millisecond}
	s, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	var right, failed int
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 250 {
				offset := draw(len(content))
				p := make([]byte, 1+draw(20_000))
				n, err := s.ReadAt(p, int64(offset))
				if string(p[:n]) != content[offset:offset+n] {
					t.Errorf("%d bytes at %d are wrong (error: %v)", n, offset, err)
				}
				if want := min(len(p), len(content)-offset); (err == nil || err == io.EOF) && n != want {
					t.Errorf("%d bytes at %d instead of %d, %v", n, offset, want, err)
				}
				mu.Lock()
				if err == nil || err == io.EOF {
					right++
				} else {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if right < 100 || failed < 100 {
		t.Errorf("%d reads right, %d failed: this tested little", right, failed)
	}
}
