package path

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/lab/labtest"
	"hayloft/lab/nfslab"
)

const hostOptions = "softerr,timeo=20,retrans=1,lookupcache=positive"

// TestGuestTwoHosts: what TestTwoProcesses shows, for hosts that have the directory from an NFS server.
func TestGuestTwoHosts(t *testing.T) {
	labtest.Guest(t)
	s := nfslab.Start(t, nfslab.Disk(t, "ext4"))
	one, two := s.NewClient(1, hostOptions), s.NewClient(2, hostOptions)
	twoHosts(t, []string{one.Dir, two.Dir, two.Dir})
}

// TestGuestHostDies: a host that vanishes while it writes keeps the name for as long as the server's lease, not longer;
// when it comes back it has lost what it wrote, and changes nothing of what the other did meanwhile.
func TestGuestHostDies(t *testing.T) {
	labtest.Guest(t)
	s := nfslab.Start(t, nfslab.Disk(t, "ext4"))
	one, two := s.NewClient(1, hostOptions), s.NewClient(2, hostOptions)
	dies, lives := open(t, one.Dir), open(t, two.Dir)
	w, err := dies.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("of the dead"), 0); err != nil {
		t.Fatal(err)
	}
	// A persistent image whose owner dies stays its owner's: nobody knows what it still has.
	if err := os.WriteFile(s.Dir+"/p", []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := repository.Owner{Host: "one", Machine: 1}
	if _, err := dies.Own(t.Context(), "p", owner, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := lives.Create(t.Context(), "a"); !fault.Is(err, fault.Busy) {
		t.Fatalf("while it lives: %v", err)
	}
	one.Vanish()
	began := time.Now()
	var other repository.Writer
	for other == nil {
		if other, err = lives.Create(t.Context(), "a"); err != nil && !fault.Is(err, fault.Busy) {
			t.Fatal(err)
		}
		if time.Since(began) > 30*nfslab.Lease { // for ever, as far as a test can tell
			t.Fatalf("still locked after %v", time.Since(began))
		}
		if err != nil {
			other = nil
			time.Sleep(200 * time.Millisecond)
		}
	}
	t.Logf("the name was free after %v, the lease is %v", time.Since(began).Round(time.Millisecond), nfslab.Lease)
	if _, err := lives.Own(t.Context(), "p", repository.Owner{Host: "two", Machine: 2}, 0, 0); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "host one") {
		t.Error(err)
	}
	if _, err := other.WriteAt([]byte("of the living"), 0); err != nil {
		t.Fatal(err)
	}
	one.Return()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := w.Commit(ctx); err == nil {
		t.Error("the dead one committed")
	} else {
		t.Logf("the dead one: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Logf("its abort: %v", err)
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(s.Dir + "/a"); err != nil || string(b) != "of the living" {
		t.Errorf("%q, %v", b, err)
	}
}
