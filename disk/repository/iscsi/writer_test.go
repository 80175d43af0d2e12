package iscsi

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/lvm"
)

// TestDeadWriter: what one leaves gives way to the next, and is swept; one that lives is left alone, and one that was
// taken for dead cannot commit.
func TestDeadWriter(t *testing.T) {
	s, r := thick(t)
	r.lease, r.limit = 10*time.Second, unanswered // the target of a dead one is gone
	now := time.Now().Unix()
	s.time.Store(now) // its clock stands still
	living, err := r.Create(t.Context(), "living")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := living.WriteAt([]byte("alive"), 0); err != nil {
		t.Fatal(err)
	}
	var dead []*writer
	for _, name := range []string{"a", "b", "z/c"} {
		w, err := r.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt([]byte("lost"), 0); err != nil {
			t.Fatal(err)
		}
		silent := w.(*writer) // it gives no sign of life any more
		silent.cancel()
		silent.renewals.Wait()
		silent.ctx = context.Background()
		dead = append(dead, silent)
	}
	_, err = r.Create(t.Context(), "a")
	class(t, "while it may live", err, fault.Busy)
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	now += int64(r.lease/time.Second) + 1 // nobody can tell a dead one sooner
	s.time.Store(now)
	for { // ends with the test's limit
		v, err := r.find(t.Context(), named(partPrefix+"living"))
		if err != nil {
			t.Fatal(err)
		}
		if v.lease.begun == now {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := r.Sweep(t.Context(), "living"); err != nil {
		t.Error(err)
	}
	written(t, r, "a", "taken over")
	if err := r.Sweep(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	all, err := lvm.Tools{Runner: s.Host}.Volumes(t.Context(), testGroup)
	var names []string
	for _, v := range all {
		names = append(names, v.Name)
	}
	if text := strings.Join(names, " "); err != nil || strings.Contains(text, partPrefix+"b") || !strings.Contains(text, partPrefix+"z+c") || !strings.Contains(text, partPrefix+"living") {
		t.Error(text, err)
	}
	var commits sync.WaitGroup
	for _, w := range dead[:2] {
		commits.Go(func() {
			err := w.Commit(t.Context())
			if !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unavailable) {
				t.Errorf("the dead commits: %v", err)
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
		})
	}
	commits.Wait()
	if err := living.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if got := content(t, r, "a") + content(t, r, "living"); got != "taken overalive" {
		t.Error(got)
	}
	if err := r.Sweep(t.Context(), ""); err != nil {
		t.Error(err)
	}
	dead[2].Abort()
	clean(t, s)
}

// TestWriterAgainstModel writes here and there, several at once, grows and cuts, on what others left.
func TestWriterAgainstModel(t *testing.T) {
	s, r := thick(t)
	random := rand.New(rand.NewPCG(1, 2))
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var model []byte
	resize := func(size int) {
		if size > len(model) {
			model = append(model, make([]byte, size-len(model))...)
		}
	}
	for range 12 {
		var group sync.WaitGroup
		base := random.IntN(3 << 20)
		for range 4 {
			p := bytes.Repeat([]byte{byte(1 + random.IntN(255))}, 1+random.IntN(150_000))
			at := base
			base += len(p) + random.IntN(100_000)
			resize(at + len(p))
			copy(model[at:], p)
			group.Go(func() {
				if _, err := w.WriteAt(p, int64(at)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if random.IntN(3) == 0 {
			size := random.IntN(len(model) + 100_000)
			if err := w.SetSize(int64(size)); err != nil {
				t.Fatal(err)
			}
			resize(size)
			model = model[:size:size]
		}
	}
	got := make([]byte, len(model))
	if n, err := w.ReadAt(got, 0); n != len(got) || err != nil || !bytes.Equal(got, model) {
		t.Errorf("the writer reads differently: %d, %v", n, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if content(t, r, "a") != string(model) {
		t.Error("the object is different")
	}
	b, err := os.ReadFile(s.Path(objectPrefix + "a"))
	if err != nil || !bytes.Equal(b[len(model):], make([]byte, len(b)-len(model))) {
		t.Errorf("the end of the volume shows what was there before, %v", err)
	}
	clean(t, s)
}
