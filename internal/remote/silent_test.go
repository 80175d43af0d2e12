package remote_test

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/remote"
	"hayloft/internal/waiting"
	"hayloft/lab/sshlab"
)

// within fails the test when f is not done after a time in which anything is.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(3 * time.Minute):
		t.Fatalf("%s: does not end", what)
	}
}

func unavailable(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("%s: %v", what, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %q", what, err, w)
		}
	}
}

// lazy is an SSH server that lets everybody in, answers keepalives, and is silent from some step on.
type lazy struct {
	address string
	known   string // file with its key

	step  atomic.Int32  // of the steps below; what comes from this one on is not answered
	asked chan struct{} // has one for each thing that was not answered
}

// silence is how long an answer is waited for that never comes; those that do come take less, also on a busy machine.
const silence = 4 * time.Second

const (
	opensSession = iota + 1
	startsProgram
	programSpeaks
	all
)

func serveLazily(t *testing.T) *lazy {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true, PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &lazy{address: "user@" + l.Addr().String(), known: t.TempDir() + "/known", asked: make(chan struct{}, 100)}
	s.step.Store(all)
	line := knownhosts.Line([]string{knownhosts.Normalize(l.Addr().String())}, signer.PublicKey())
	if err := os.WriteFile(s.known, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	t.Cleanup(func() { l.Close(); group.Wait() })
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				_, channels, requests, err := ssh.NewServerConn(c, config)
				if err != nil {
					return
				}
				group.Go(func() { ssh.DiscardRequests(requests) }) // answers them
				for n := range channels {
					if s.silent(opensSession) {
						continue
					}
					channel, requests, err := n.Accept()
					if err != nil {
						return
					}
					group.Go(func() { s.session(channel, requests) })
				}
			})
		}
	})
	return s
}

func (s *lazy) silent(step int32) bool {
	if s.step.Load() > step {
		return false
	}
	s.asked <- struct{}{}
	return true
}

// session runs programs that say nothing and end well, and SFTP servers that say nothing.
func (s *lazy) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	for r := range requests {
		if s.silent(startsProgram) {
			continue
		}
		_ = r.Reply(true, nil)
		if s.silent(programSpeaks) || r.Type == "subsystem" {
			continue
		}
		_, _ = channel.Write([]byte("hayloft-process:4711\n"))
		_, _ = channel.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
		_ = channel.Close()
	}
}

// TestSilentAtEachStep: a host that answers keepalives, and nothing else, is not waited for without end, and is of use when it
// is well again.
func TestSilentAtEachStep(t *testing.T) {
	keys := newKey(t)
	for _, row := range []struct {
		name  string
		step  int32
		words string
	}{
		{"session", opensSession, "it has not opened a session within 4s"},
		{"program", startsProgram, "true has not started within 4s"},
		{"its first word", programSpeaks, "true has not started within 4s"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			s := serveLazily(t)
			h := open(t, remote.Config{Address: s.address, KeyFile: keys, KnownHostsFile: s.known, AnswerLimit: silence})
			s.step.Store(row.step)
			within(t, row.name, func() {
				_, err := h.Run(t.Context(), command.Cmd{Name: "true"})
				unavailable(t, "Run", err, "host "+s.address, row.words)
				_, err = h.Start(t.Context(), command.Cmd{Name: "true"})
				unavailable(t, "Start", err, "host "+s.address, row.words)
				c, err := h.Connect(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Release()
				_, err = c.SFTP(t.Context())
				unavailable(t, "SFTP", err, "host "+s.address, "4s")
			})
			s.step.Store(all)
			within(t, "when it is well again", func() {
				for { // until the loss of the connection was seen
					if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); err == nil {
						return
					}
				}
			})
		})
	}
}

// TestSilentSFTP: those who come later get the error of the first, and a new connection after that.
func TestSilentSFTP(t *testing.T) {
	s := serveLazily(t)
	h := open(t, remote.Config{Address: s.address, KeyFile: newKey(t), KnownHostsFile: s.known, AnswerLimit: silence})
	first, err := h.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	within(t, "SFTP", func() {
		for range 2 {
			_, err := first.SFTP(t.Context())
			unavailable(t, "SFTP", err, "host "+s.address, "its SFTP server has not answered for 4s")
		}
		<-first.Done()
	})
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); err != nil {
		t.Error(err)
	}
}

// TestWhatIsWaitedFor: a caller can be told.
func TestWhatIsWaitedFor(t *testing.T) {
	s := serveLazily(t)
	h := open(t, remote.Config{Address: s.address, KeyFile: newKey(t), KnownHostsFile: s.known})
	for _, row := range []struct {
		step int32
		want string
	}{
		{opensSession, "testing: a session of host " + s.address},
		{startsProgram, "testing: the start of true on host " + s.address},
	} {
		s.step.Store(row.step)
		ctx, watch := waiting.New(t.Context())
		ctx, done := waiting.On(ctx, "testing")
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error)
		go func() {
			_, err := h.Run(ctx, command.Cmd{Name: "true"})
			ended <- err
		}()
		<-s.asked
		if what, _ := watch.Longest(); what != row.want {
			t.Errorf("%q, want %q", what, row.want)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		done()
		if what, _ := watch.Longest(); what != "" {
			t.Errorf("still %q", what)
		}
	}
}

// TestManyCallersOfASilentHost: they do not wait for each other's attempts to connect.
func TestManyCallersOfASilentHost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := open(t, remote.Config{Address: "user@" + l.Addr().String(), KeyFile: newKey(t), KnownHostsFile: emptyFile(t), ConnectLimit: time.Second})
	const callers = 50
	var come sync.WaitGroup
	come.Add(callers)
	var attempts atomic.Int32
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		var held []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				for _, c := range held {
					c.Close()
				}
				return
			}
			attempts.Add(1)
			held = append(held, c)
		}
	})
	within(t, "connecting", func() {
		var group sync.WaitGroup
		for range callers {
			group.Go(func() {
				come.Done()
				come.Wait()
				_, err := h.Connect(t.Context())
				unavailable(t, "Connect", err, "host "+h.String(), "no connection within 1s")
			})
		}
		group.Wait()
	})
	if n := attempts.Load(); n > callers/2 { // two, where nobody comes late
		t.Errorf("%d attempts for %d callers that came together", n, callers)
	}
	l.Close()
}

// TestSilentAgent: one that holds the keys and does not answer.
func TestSilentAgent(t *testing.T) {
	s := sshlab.Start(t)
	text, err := os.ReadFile(s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParseRawPrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	for name, serve := range map[string]func(net.Conn, <-chan struct{}){
		"listing": func(_ net.Conn, end <-chan struct{}) { <-end },
		"signing": func(c net.Conn, end <-chan struct{}) { _ = agent.ServeAgent(mute{ring.(agent.ExtendedAgent), end}, c) },
	} {
		t.Run(name, func(t *testing.T) {
			socket := t.TempDir() + "/agent"
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			end := make(chan struct{})
			var group sync.WaitGroup
			defer group.Wait()
			defer close(end)
			defer l.Close()
			group.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					group.Go(func() { defer c.Close(); serve(c, end) })
				}
			})
			t.Setenv("SSH_AUTH_SOCK", socket)
			t.Setenv("HOME", t.TempDir())
			h := open(t, remote.Config{Address: s.Host, KnownHostsFile: s.KnownHostsFile, ConnectLimit: 2 * time.Second})
			within(t, name, func() {
				_, err := h.Run(t.Context(), command.Cmd{Name: "true"})
				if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), s.Host) {
					t.Error(err)
				}
			})
		})
	}
}

// mute is an agent that does not sign.
type mute struct {
	agent.ExtendedAgent
	end <-chan struct{}
}

func (m mute) SignWithFlags(ssh.PublicKey, []byte, agent.SignatureFlags) (*ssh.Signature, error) {
	<-m.end
	return nil, errors.New("ended")
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/empty"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newKey is the file of a new private key.
func newKey(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/key"
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
