package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"hayloft/cloud"
	"hayloft/lab/labtest"
	"hayloft/server/api"
	"hayloft/server/api/client/clienttest"
)

// The system's own ssh takes the options, and keeps and checks the machine's host key. Port 2222 of the
// machine answers with another key.
func TestRealSSH(t *testing.T) {
	labtest.Root(t, "ssh")
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "realssh"),
		Setup: func(env *testscript.Env) error {
			s := clienttest.New(env.T().(testing.TB))
			s.Put(cloud.KindVM, aVM(3, "web", running))
			s.Answer("GET /v1/version", func(*http.Request, []byte) (any, error) { return api.Version{Cluster: "one"}, nil })
			keys := make(chan ssh.Signer, 1)
			genuine, other := hostKey(t), hostKey(t)
			s.Tunnel(func(_ int, _ string, port int) error {
				keys <- map[int]ssh.Signer{22: genuine, 2222: other}[port]
				return nil
			}, func(conn net.Conn, _ string) { serveSSH(conn, <-keys) })
			env.Setenv("HAYLOFT_ENDPOINT", s.Endpoint())
			env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, "cache dir 100%"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
	})
}

func hostKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// serveSSH lets everybody in and answers one command: "fail" with status 5, others with their own words.
func serveSSH(conn net.Conn, key ssh.Signer) {
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(key)
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for open := range channels {
		channel, requests, err := open.Accept()
		if err != nil {
			return
		}
		for request := range requests {
			if request.Type != "exec" {
				_ = request.Reply(false, nil)
				continue
			}
			_ = request.Reply(true, nil)
			command := string(request.Payload[4:])
			_, _ = channel.Write([]byte(server.User() + " ran " + command + "\n"))
			status := []byte{0, 0, 0, 0}
			if strings.HasPrefix(command, "fail") {
				status[3] = 5
			}
			_, _ = channel.SendRequest("exit-status", false, status)
			_ = channel.Close()
		}
	}
}
