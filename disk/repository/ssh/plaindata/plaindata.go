// Package plaindata moves the bytes of files between two hosts that trust the network between them, without encryption:
// encryption is what copies of images cost most. It is used only where a datastore says PLAIN_DATA = YES.
//
// Over an encrypted SSH connection the storage server's end is started, given a random secret on its standard input,
// and says where it listens. Whoever connects there must show in answer to a nonce that it knows the secret, and
// is shown the same, before anything else is said; the secret itself never leaves the SSH connection. What is said
// then can be read by everybody on the way, and changed by one who can get between: what caches read is
// checked against digests anyway, but a write is not protected. That is why it must be allowed by name.
//
// Requests and answers follow each other on a connection; several connections run at the same time. All numbers are
// big-endian. A request is an operation (1 byte), a handle (4), an offset (8) and a length (8), followed by length
// bytes of a name or of data for opOpen and opWrite. An answer is a status (1; 0: fine, else a fault.Class + 1) and
// a length or value (8), followed by length bytes of data, or of the error's text.
package plaindata

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"hayloft/cloud/fault"
)

const (
	opOpen  = 1 // handle: 1 to write too. Answer: the handle
	opClose = 2
	opRead  = 3 // answer: fewer bytes at the file's end
	opWrite = 4
	opPunch = 5
	opNext  = 6 // answer: start and end (8 each) of the first data at or after offset; start is noData beyond the last

	requestSize = 1 + 4 + 8 + 8
	answerSize  = 1 + 8
	nonceSize   = 32
	maxName     = 4096
	maxWrite    = 16 << 20 // bytes of data in one request
	noData      = ^uint64(0)

	handshakeLimit = 30 * time.Second
	greeting       = "hayloft plain data 1\n"

	// SecretSize is the size of the secret in bytes.
	SecretSize = 32
	// Lease is how long the storage server's end waits for a sign of life on its standard input.
	Lease = 60 * time.Second
)

type request struct {
	op     byte
	handle uint32
	offset uint64
	length uint64
}

func (r request) marshal() []byte {
	b := make([]byte, requestSize)
	b[0] = r.op
	binary.BigEndian.PutUint32(b[1:], r.handle)
	binary.BigEndian.PutUint64(b[5:], r.offset)
	binary.BigEndian.PutUint64(b[13:], r.length)
	return b
}

func readRequest(r io.Reader, b *[requestSize]byte) (request, error) {
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return request{}, err
	}
	return request{b[0], binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint64(b[5:]), binary.BigEndian.Uint64(b[13:])}, nil
}

// proof shows that side knows the secret, for these nonces alone.
func proof(secret []byte, side string, client, server []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(side))
	m.Write(client)
	m.Write(server)
	return m.Sum(nil)
}

var errStranger = fault.Errorf(fault.Permission, "plain data: the other side does not know the secret")

// greet is the client's half of the introduction.
func greet(c io.ReadWriter, secret []byte) error {
	mine := make([]byte, nonceSize)
	_, _ = rand.Read(mine) // never fails
	if _, err := c.Write(append([]byte(greeting), mine...)); err != nil {
		return err
	}
	answer := make([]byte, nonceSize+sha256.Size)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	theirs := answer[:nonceSize]
	if !hmac.Equal(answer[nonceSize:], proof(secret, "server", mine, theirs)) {
		return errStranger
	}
	_, err := c.Write(proof(secret, "client", mine, theirs))
	return err
}

// receive is the server's half.
func receive(c io.ReadWriter, secret []byte) error {
	first := make([]byte, len(greeting)+nonceSize)
	if _, err := io.ReadFull(c, first); err != nil {
		return err
	}
	if string(first[:len(greeting)]) != greeting {
		return errors.New("plain data: something else is spoken")
	}
	theirs := first[len(greeting):]
	mine := make([]byte, nonceSize)
	_, _ = rand.Read(mine)
	if _, err := c.Write(append(mine[:nonceSize:nonceSize], proof(secret, "server", theirs, mine)...)); err != nil {
		return err
	}
	shown := make([]byte, sha256.Size)
	if _, err := io.ReadFull(c, shown); err != nil {
		return err
	}
	if !hmac.Equal(shown, proof(secret, "client", theirs, mine)) {
		return errStranger
	}
	return nil
}
