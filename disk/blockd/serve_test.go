package blockd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
)

// scripted is a Service that notes what it was asked.
type scripted struct {
	asked []any
	err   error
	hang  chan struct{} // Settle says here that it began, and waits for its context
}

func (s *scripted) note(v ...any) error {
	s.asked = append(s.asked, v...)
	return s.err
}

func (s *scripted) Base(_ context.Context, b BaseSpec) (cache.BaseStatus, error) {
	return cache.BaseStatus{Present: 5, Total: 7}, s.note(b)
}
func (s *scripted) Preload(_ context.Context, p Preload, report func(done, total int64)) error {
	report(1, 3)
	report(3, 3)
	return s.note(p)
}
func (s *scripted) Export(_ context.Context, e Export) error        { return s.note(e) }
func (s *scripted) Unexport(_ context.Context, name string) error   { return s.note("unexport " + name) }
func (s *scripted) Discard(_ context.Context, name string) error    { return s.note("discard " + name) }
func (s *scripted) DropBase(_ context.Context, digest string) error { return s.note("drop " + digest) }
func (s *scripted) Status(context.Context) (Status, error) {
	return Status{Version: "9", PID: 3}, s.note("status")
}
func (s *scripted) Settle(ctx context.Context, name string, _ func(done, total int64)) error {
	if s.hang != nil {
		s.hang <- struct{}{}
		<-ctx.Done()
		s.hang <- struct{}{}
		return ctx.Err()
	}
	return s.note("settle " + name)
}

// served serves s in a directory until the test ends.
func served(t *testing.T, s Service) (dir string, c *Client) {
	t.Helper()
	root, err := os.MkdirTemp("", "hl")
	must(t, err)
	l, err := Listen(root + "/state")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, s) }()
	c = NewClient(root + "/state")
	t.Cleanup(func() {
		c.Close()
		cancel()
		must(t, <-done)
		must(t, os.RemoveAll(root))
	})
	return root + "/state", c
}

func TestCallsArrive(t *testing.T) {
	s := &scripted{}
	_, c := served(t, s)
	ctx := t.Context()
	base := BaseSpec{Image: disk.Image{ID: 3, Repository: disk.Repository{Options: map[string]string{"A": "b"}}}, Dir: "/d", Capacity: 9, GID: 4}
	preload := Preload{Digest: "d", Bytes: 5, Rate: 7, Profile: true, Background: true}
	volume := Export{Name: "1.0", Kind: Loop, Path: "/p", UID: 1, GID: 2, Volume: &VolumeSpec{Machine: 1, Host: "h", Size: 8, Mode: cache.Back}}
	if got, err := c.Base(ctx, base); err != nil || got.Present != 5 || got.Total != 7 {
		t.Error(got, err)
	}
	var told [][2]int64
	must(t, c.Preload(ctx, preload, func(done, total int64) { told = append(told, [2]int64{done, total}) }))
	if len(told) != 2 || told[1] != [2]int64{3, 3} {
		t.Error(told)
	}
	must(t, errors.Join(c.Export(ctx, volume), c.Unexport(ctx, "a"), c.Settle(ctx, "b", nil), c.Discard(ctx, "c"), c.DropBase(ctx, "d")))
	if got, err := c.Status(ctx); err != nil || got.Version != "9" || got.PID != 3 {
		t.Error(got, err)
	}
	want := []any{base, preload, volume, "unexport a", "settle b", "discard c", "drop d", "status"}
	if !sameJSON(s.asked, want) {
		t.Errorf("%+v", s.asked)
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	s := &scripted{}
	_, c := served(t, s)
	for class_ := fault.Internal; class_ <= fault.Corrupt; class_++ {
		s.err = fault.Errorf(class_, "export 1.0: no %v", class_)
		err := c.Export(t.Context(), Export{})
		class(t, "export", err, class_)
		says(t, err, "export 1.0: no "+class_.String())
	}
}

// TestCallEndsWithItsClient: there as well as here.
func TestCallEndsWithItsClient(t *testing.T) {
	s := &scripted{hang: make(chan struct{})}
	_, c := served(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Settle(ctx, "x", nil) }()
	<-s.hang
	cancel()
	<-s.hang // its context has ended
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSocketIsClosedToOthers(t *testing.T) {
	dir, _ := served(t, &scripted{})
	for path, want := range map[string]os.FileMode{dir: 0o700, socketOf(dir): 0o600} {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != want {
			t.Error(path, fi.Mode(), err)
		}
		if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
			t.Errorf("%s belongs to %d", path, st.Uid)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Error(entries)
	}
}

// TestOtherProtocols: clients of another build are told so, and can still have the process end.
func TestOtherProtocols(t *testing.T) {
	_, c := served(t, &scripted{})
	send := func(path, protocol, body string) (int, reply) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://blockd"+path, strings.NewReader(body))
		must(t, err)
		if protocol != "" {
			request.Header.Set(protocolHeader, protocol)
		}
		response, err := c.http.Do(request)
		must(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		must(t, err)
		var r reply
		_ = json.Unmarshal(text, &r)
		return response.StatusCode, r
	}
	ours := strconv.Itoa(Protocol)
	for _, x := range []struct {
		path, protocol, body string
		want                 fault.Class
		word                 string
	}{
		{callPath + "status", "", "{}", fault.Unsupported, "another build"},
		{callPath + "status", "99", "{}", fault.Unsupported, "99"},
		{callPath + "status", ours, `{"new":1}`, fault.Invalid, "new"},
		{callPath + "status", ours, `{half`, fault.Invalid, "arguments"},
		{callPath + "export", ours, `{}`, fault.Invalid, "without export"},
		{callPath + "dance", ours, `{}`, fault.Unsupported, "dance"},
		{endPath, "99", ``, fault.Unsupported, "cannot be asked to end"},
	} {
		_, r := send(x.path, x.protocol, x.body)
		class(t, x.path+x.body, r.Error.err(), x.want)
		says(t, r.Error.err(), x.word)
	}
}
