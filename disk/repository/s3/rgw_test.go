package s3

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/lab/rgwlab"
)

// TestRadosGateway: the suite, and parts and clones, with a real server.
func TestRadosGateway(t *testing.T) {
	s := rgwlab.Start(t)
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	key := keyFile(t, rgwlab.SecretKey)
	var n atomic.Int64
	open := func(t *testing.T) *Repository {
		r, err := New(disk.Repository{ID: 7, Path: s.Endpoint + "/" + strings.Repeat("x", int(n.Add(1))), Options: map[string]string{
			"ACCESS_KEY_ID": rgwlab.AccessKey, "SECRET_KEY_FILE": key, "PLAIN_CREDENTIALS": "YES", "SPOOL_DIR": t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	repositorytest.Run(t, func(t *testing.T) repository.Repository { return open(t) })
	t.Run("parts and clones", func(t *testing.T) {
		r := open(t)
		want := make([]byte, 4*firstPart+5000)
		w, err := r.Create(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		copy(want, random(1, int(firstPart)+10))
		if _, err := w.WriteAt(want[:firstPart+10], 0); err != nil {
			t.Fatal(err)
		}
		if err := w.SetSize(int64(len(want))); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, r, "a", want)
		c, _, err := r.CreateFrom(t.Context(), "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Abort()
		if _, err := c.WriteAt([]byte("changed"), 20<<20); err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, r, "a", want)
		copy(want[20<<20:], "changed")
		check(t, r, "b", want)
	})
	t.Run("two hosts", func(t *testing.T) {
		r := open(t)
		other, err := New(disk.Repository{ID: 7, Path: strings.TrimSuffix(r.label[len("datastore 7 ("):], ")"), Options: map[string]string{
			"ACCESS_KEY_ID": rgwlab.AccessKey, "SECRET_KEY_FILE": key, "PLAIN_CREDENTIALS": "YES", "SPOOL_DIR": t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		one, err1 := r.Create(t.Context(), "a")
		two, err2 := other.Create(t.Context(), "a")
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		for i, w := range []repository.Writer{one, two} {
			if _, err := w.WriteAt([]byte{byte('1' + i)}, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := one.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := two.Commit(t.Context()); !fault.Is(err, fault.Exists) {
			t.Error(err)
		}
		if err := two.Abort(); err != nil {
			t.Error(err)
		}
		check(t, r, "a", []byte("1"))
	})
	t.Run("a wrong key", func(t *testing.T) {
		r, err := New(disk.Repository{ID: 7, Path: s.Endpoint, Options: map[string]string{
			"ACCESS_KEY_ID": rgwlab.AccessKey, "SECRET_KEY_FILE": keyFile(t, "wrong"), "PLAIN_CREDENTIALS": "YES"}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.List(t.Context(), ""); !fault.Is(err, fault.Permission) {
			t.Error(err)
		}
	})
}
