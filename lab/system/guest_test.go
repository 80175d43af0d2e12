package system

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hayloft/server/api/client"
)

// login is the key that machines of a test let in.
type login struct {
	signer  ssh.Signer
	private []byte // PEM, for ssh -i
	public  string
}

func newLogin(t *testing.T) login {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return login{signer, pem.EncodeToMemory(block), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))}
}

// tunnelConn makes a connection of a tunnel, as ssh wants one.
type tunnelConn struct{ client.Conn }

func (tunnelConn) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "tunnel"} }
func (tunnelConn) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "tunnel"} }
func (tunnelConn) SetDeadline(time.Time) error      { return nil }
func (tunnelConn) SetReadDeadline(time.Time) error  { return nil }
func (tunnelConn) SetWriteDeadline(time.Time) error { return nil }

// ssh runs a command in a machine over the product's own tunnel and returns what it printed. It goes on
// trying until the machine lets it in.
func (p *product) ssh(id int, command string) string {
	p.Helper()
	var said string
	p.eventually(fmt.Sprintf("ssh to vm %d: %s", id, command), func() (err error) {
		said, err = p.trySSH(id, command)
		return err
	})
	return said
}

// sshLimit ends a try: who boots anew leaves connections unanswered.
const sshLimit = time.Minute

func (p *product) trySSH(id int, command string) (string, error) {
	ctx, cancel := context.WithTimeout(p.ctx, sshLimit)
	defer cancel()
	tunnel, err := p.client.Tunnel(ctx, id, client.TunnelTCP, 22)
	if err != nil {
		return "", err
	}
	defer tunnel.Close()
	stop := context.AfterFunc(ctx, func() { _ = tunnel.Close() })
	defer stop()
	conn, channels, requests, err := ssh.NewClientConn(tunnelConn{tunnel}, "guest", &ssh.ClientConfig{
		Config:          ssh.Config{KeyExchanges: []string{"curve25519-sha256"}, Ciphers: []string{"chacha20-poly1305@openssh.com", "aes128-ctr"}},
		User:            "root",
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(p.login.signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // it was made a moment ago; nobody could know it
	})
	if err != nil {
		return "", fmt.Errorf("ssh: %w", err)
	}
	shell := ssh.NewClient(conn, channels, requests)
	defer shell.Close()
	session, err := shell.NewSession()
	if err != nil {
		return "", fmt.Errorf("ssh: %w", err)
	}
	defer session.Close()
	var complaint bytes.Buffer
	session.Stderr = &complaint
	said, err := session.Output(command)
	if err != nil {
		return "", fmt.Errorf("ssh: %s: %w: %s", command, err, complaint.String())
	}
	return strings.TrimSpace(string(said)), nil
}

// consoleLog is what a machine has written to its console since it was put where it is.
func (p *product) consoleLog(id int) string {
	p.Helper()
	var text bytes.Buffer
	p.eventually(fmt.Sprintf("console log of vm %d", id), func() error {
		ctx, cancel := context.WithTimeout(p.ctx, patience)
		defer cancel()
		text.Reset()
		tunnel, err := p.client.Tunnel(ctx, id, client.TunnelConsoleLog, 0)
		if err != nil {
			return err // its agent or the server has just been killed, perhaps
		}
		defer tunnel.Close()
		_, err = text.ReadFrom(tunnel)
		return err
	})
	return text.String()
}

// prints waits until the console log has the words.
func (p *product) prints(id int, words string) {
	p.Helper()
	p.eventually(fmt.Sprintf("console of vm %d", id), func() error {
		if text := p.consoleLog(id); !strings.Contains(text, words) {
			return fmt.Errorf("%q is not in %q", words, text)
		}
		return nil
	})
}
