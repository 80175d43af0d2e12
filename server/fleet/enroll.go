package fleet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
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
	Expires int64  `json:"expires"` // Unix seconds
}

const tokenLife = 24 * time.Hour

func tokenKey(id string) string { return "token/" + id }

// NewToken makes a token with which the named host can enroll once, within a day.
func (f *Fleet) NewToken(ctx context.Context, host string) (string, error) {
	token, id, hash, err := pki.NewToken(f.authority)
	if err != nil {
		return "", err
	}
	value, err := json.Marshal(enrollment{hash, host, f.now().Add(tokenLife).Unix()})
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
	} else if err := f.redeem(ctx, r.Token, r.HostName); err != nil {
		return nil, toStatus(err)
	}
	certificate, err := f.authority.Sign(r.CertificateRequest, id)
	if err != nil {
		return nil, toStatus(err)
	}
	f.log.Info("host enrolled", "host", r.HostName)
	return &wire.EnrollReply{Certificate: certificate, Authority: f.authority.Certificate(), Cluster: f.cluster}, nil
}

func (f *Fleet) redeem(ctx context.Context, text, host string) error {
	token, err := pki.ParseToken(text)
	if err != nil {
		return err
	}
	rec, err := f.inv.Store.Get(ctx, tokenKey(token.ID))
	if err != nil {
		return err
	}
	var e enrollment
	if rec.Revision == 0 || json.Unmarshal(rec.Value, &e) != nil || !token.Check(e.Hash) {
		return fault.Errorf(fault.Permission, "host %s: the token is not valid, or was used before", host)
	}
	if f.now().Unix() > e.Expires {
		return fault.Errorf(fault.Permission, "host %s: the token has expired", host)
	}
	if e.Host != host {
		return fault.Errorf(fault.Permission, "host %s: the token is for host %s", host, e.Host)
	}
	_, err = f.inv.Store.Txn(ctx, []store.Cond{{Key: rec.Key, Revision: rec.Revision}}, []store.Op{store.Del(rec.Key)})
	if fault.Is(err, fault.Busy) {
		return fault.Errorf(fault.Permission, "host %s: the token was used before", host)
	}
	return err
}

func randomID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return hex.EncodeToString(b[:])
}
