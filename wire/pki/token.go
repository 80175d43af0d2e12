package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"strings"

	"hayloft/cloud/fault"
)

// Token lets a host or administrator enroll once. Its text is "ID.SECRET.AUTHORITY": the server keeps ID and
// a hash of the secret; whoever holds the token knows by the authority's hash whom to trust.
type Token struct {
	ID        string // 10 characters, not secret
	Secret    string // 26 characters, 130 bits
	Authority string // hash of the authority's certificate, hexadecimal
}

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

const (
	tokenID     = 10
	tokenSecret = 26
	tokenHash   = 2 * sha256.Size
)

// NewToken makes a token for an authority: its text for the one who enrolls, its id and the hash of its
// secret for the server to keep. The server removes them when the token has been used.
func NewToken(a *Authority) (token, id, hash string, err error) {
	random := make([]byte, 32)
	if _, err := rand.Read(random); err != nil {
		return "", "", "", err
	}
	text := encoding.EncodeToString(random)
	t := Token{ID: text[:tokenID], Secret: text[tokenID : tokenID+tokenSecret], Authority: a.Hash()}
	return t.String(), t.ID, t.Hash(), nil
}

// ParseToken reads a token's text. Errors: fault.Invalid, without the secret in their words.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 {
		return Token{}, fault.Errorf(fault.Invalid, "token: not of the form ID.SECRET.AUTHORITY")
	}
	t := Token{parts[0], parts[1], parts[2]}
	for _, part := range []struct {
		name, text, alphabet string
		length               int
	}{
		{"id", t.ID, "abcdefghijklmnopqrstuvwxyz234567", tokenID},
		{"secret", t.Secret, "abcdefghijklmnopqrstuvwxyz234567", tokenSecret},
		{"authority", t.Authority, "0123456789abcdef", tokenHash},
	} {
		if len(part.text) != part.length || strings.Trim(part.text, part.alphabet) != "" {
			return Token{}, fault.Errorf(fault.Invalid, "token: its %s is not %d characters of %s", part.name, part.length, part.alphabet)
		}
	}
	return t, nil
}

func (t Token) String() string { return t.ID + "." + t.Secret + "." + t.Authority }

// Hash is what the server keeps of the secret. The secret has 130 random bits, so a plain hash is enough.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(t.ID + "." + t.Secret))
	return hex.EncodeToString(sum[:])
}

// Check compares the token with a kept hash, in constant time.
func (t Token) Check(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Hash()), []byte(hash)) == 1
}
