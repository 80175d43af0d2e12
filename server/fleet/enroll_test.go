package fleet

import (
	"crypto"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hayloft/server/inventory"
	"hayloft/store/memory"
	"hayloft/wire"
	"hayloft/wire/pki"
)

func enrolling(t *testing.T) *Fleet {
	t.Helper()
	authority, err := pki.LoadOrCreateAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	t.Cleanup(func() { _ = st.Close() })
	log := slog.New(slog.DiscardHandler)
	inv, err := inventory.Open(t.Context(), st, log)
	if err != nil {
		t.Fatal(err)
	}
	return New(inv, authority, "installation", nil, log)
}

func request(t *testing.T, token, host string, key crypto.Signer) *wire.EnrollRequest {
	t.Helper()
	csr, err := pki.NewRequest(key, pki.Identity{Role: pki.Host, Name: host})
	if err != nil {
		t.Fatal(err)
	}
	return &wire.EnrollRequest{Token: token, HostName: host, CertificateRequest: csr}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestATokenIsGoodForOneKeyOfOneHost(t *testing.T) {
	f := enrolling(t)
	token, err := f.NewToken(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	for what, r := range map[string]*wire.EnrollRequest{
		"another host":  request(t, token, "node2", key),
		"no token":      request(t, "", "node1", key),
		"a wrong token": request(t, token[:12]+"aaaa"+token[16:], "node1", key),
	} {
		if _, err := f.Enroll(t.Context(), r); err == nil {
			t.Errorf("%s enrolled", what)
		}
	}
	reply, err := f.Enroll(t.Context(), request(t, token, "node1", key))
	if err != nil || reply.Cluster != "installation" || len(reply.Certificate) == 0 {
		t.Fatalf("%v, %v", reply, err)
	}
	if _, err := f.Enroll(t.Context(), request(t, token, "node1", key)); err != nil {
		t.Errorf("the same key again, as after a crash: %v", err)
	}
	if _, err := f.Enroll(t.Context(), request(t, token, "node1", newKey(t))); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a used token with another key: %v", err)
	}
}

func TestTokensExpireAndAreForgotten(t *testing.T) {
	f := enrolling(t)
	token, err := f.NewToken(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	f.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	if _, err := f.Enroll(t.Context(), request(t, token, "node1", newKey(t))); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an old token: %v", err)
	}
	if _, err := f.NewToken(t.Context(), "node2"); err != nil {
		t.Fatal(err)
	}
	if records, _, err := f.inv.Store.List(t.Context(), "token/"); err != nil || len(records) != 1 {
		t.Errorf("%d tokens kept, want the new one; %v", len(records), err)
	}
}

func TestACertificateIsRenewedWithoutAToken(t *testing.T) {
	f := enrolling(t)
	me := pki.Identity{Role: pki.Host, Name: "node1"}
	if _, err := f.Enroll(pki.WithIdentity(t.Context(), me), request(t, "", "node1", newKey(t))); err != nil {
		t.Error(err)
	}
	if _, err := f.Enroll(pki.WithIdentity(t.Context(), me), request(t, "", "node2", newKey(t))); err == nil {
		t.Error("node1 got a certificate for node2")
	}
}
