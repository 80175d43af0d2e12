package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"hayloft/cloud/fault"
	"hayloft/store"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// enrollment is what the store keeps of a token.
type enrollment struct {
	Hash    string `json:"hash"`
	Host    string `json:"host"`
	Expires int64  `json:"expires"`           // Unix seconds
	UsedBy  string `json:"used_by,omitempty"` // hash of the public key that enrolled with it
}

const tokenLife = 24 * time.Hour

func tokenKey(id string) string { return "token/" + id }

// NewToken makes a token with which the named host can enroll once, within a day.
func (f *Fleet) NewToken(ctx context.Context, host string) (string, error) {
	token, id, hash, err := pki.NewToken(f.authority)
	if err != nil {
		return "", err
	}
	if err := f.forget(ctx); err != nil {
		return "", err
	}
	value, err := json.Marshal(enrollment{Hash: hash, Host: host, Expires: f.now().Add(tokenLife).Unix()})
	if err != nil {
		return "", err
	}
	_, err = f.inv.Store.Txn(ctx, []store.Cond{{Key: tokenKey(id)}}, []store.Op{store.Put(tokenKey(id), value)})
	return token, err
}

// Enroll answers a token, once, or a valid certificate, with a new certificate.
func (f *Fleet) Enroll(ctx context.Context, r *wire.EnrollRequest) (*wire.EnrollReply, error) {
	id := pki.Identity{Role: pki.Host, Name: r.HostName}
	if r.Token == "" {
		caller, ok := pki.FromContext(ctx)
		if !ok || caller != id {
			return nil, toStatus(fault.Errorf(fault.Permission, "host %s: a token is needed to enroll", r.HostName))
		}
	} else if err := f.redeem(ctx, r); err != nil {
		return nil, toStatus(err)
	}
	certificate, err := f.authority.Sign(r.CertificateRequest, id)
	if err != nil {
		return nil, toStatus(err)
	}
	f.log.Info("host enrolled", "host", r.HostName)
	return &wire.EnrollReply{Certificate: certificate, Authority: f.authority.Certificate(), Cluster: f.cluster}, nil
}

// redeem uses a token up. A host that died before it had its certificate may come again with the same
// token, but only with the same key.
func (f *Fleet) redeem(ctx context.Context, r *wire.EnrollRequest) error {
	host := r.HostName
	token, err := pki.ParseToken(r.Token)
	if err != nil {
		return err
	}
	request, err := x509.ParseCertificateRequest(r.CertificateRequest)
	if err != nil {
		return fault.Errorf(fault.Invalid, "host %s: certificate request: %w", host, err)
	}
	key := fmt.Sprintf("%x", sha256.Sum256(request.RawSubjectPublicKeyInfo))
	return store.Retry(ctx, func() error {
		rec, err := f.inv.Store.Get(ctx, tokenKey(token.ID))
		if err != nil {
			return err
		}
		var e enrollment
		switch {
		case rec.Revision == 0 || json.Unmarshal(rec.Value, &e) != nil || !token.Check(e.Hash) || e.UsedBy != "" && e.UsedBy != key:
			return fault.Errorf(fault.Permission, "host %s: the token is not valid, or was used before", host)
		case f.now().Unix() > e.Expires:
			return fault.Errorf(fault.Permission, "host %s: the token has expired", host)
		case e.Host != host:
			return fault.Errorf(fault.Permission, "host %s: the token is for host %s", host, e.Host)
		case e.UsedBy == key:
			return nil
		}
		e.UsedBy = key
		value, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = f.inv.Store.Txn(ctx, []store.Cond{{Key: rec.Key, Revision: rec.Revision}}, []store.Op{store.Put(rec.Key, value)})
		return err
	})
}

// forget deletes the tokens that have expired.
func (f *Fleet) forget(ctx context.Context) error {
	records, _, err := f.inv.Store.List(ctx, tokenKey(""))
	if err != nil {
		return err
	}
	for _, rec := range records {
		var e enrollment
		if json.Unmarshal(rec.Value, &e) == nil && f.now().Unix() <= e.Expires {
			continue
		}
		_, err := f.inv.Store.Txn(ctx, []store.Cond{{Key: rec.Key, Revision: rec.Revision}}, []store.Op{store.Del(rec.Key)})
		if err != nil && !fault.Is(err, fault.Busy) {
			return err
		}
	}
	return nil
}

func randomID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return hex.EncodeToString(b[:])
}
