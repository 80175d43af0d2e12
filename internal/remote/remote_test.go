package remote_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/leaktest"
	"hayloft/internal/remote"
	"hayloft/lab/sshlab"
)

// The library may never answer about a session that is opened while its connection ends: see connection.open.
func TestMain(m *testing.M) {
	leaktest.Main(m, goleak.IgnoreAnyFunction("golang.org/x/crypto/ssh.(*mux).openChannel"))
}

func open(t *testing.T, c remote.Config) *remote.Host {
	t.Helper()
	h, err := remote.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// patience is how long tests wait for what must come, on a machine with much else to do.
const patience = 2 * time.Minute

func config(s *sshlab.Server) remote.Config {
	return remote.Config{Address: s.Host, KeyFile: s.KeyFile, KnownHostsFile: s.KnownHostsFile,
		ConnectLimit: patience, AnswerLimit: patience, DeadAfter: patience}
}

func TestRun(t *testing.T) {
	s := sshlab.Start(t)
	h := open(t, config(s))
	hard := "it's $(id) \\ \"x\"\n*"
	out, err := h.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", `cat; printf %s "$1$X"; pwd`, "sh", hard}, Stdin: []byte("in."), Env: []string{"X=y z"}, Dir: "/usr"})
	if err != nil || string(out) != "in."+hard+"y z/usr\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = h.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", "echo nonsense >&2; exit 3"}})
	var failed *command.Error
	if !errors.As(err, &failed) || failed.Status != 3 || err.Error() != "host "+s.Host+": sh: nonsense" {
		t.Errorf("%v", err)
	}
	_, err = h.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", "kill -9 $$"}})
	if !errors.As(err, &failed) || failed.Status != -1 || !strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("%v", err)
	}
	_, err = h.Run(t.Context(), command.Cmd{Name: "no-such-program"})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "no-such-program is not installed") {
		t.Errorf("%v", err)
	}
	_, err = h.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"a\x00"}})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	if n := s.Connections(); n != 1 {
		t.Errorf("%d connections for programs one after the other", n)
	}
}

// TestContextEndsTheProgram: the program on the other host does not go on without its caller.
func TestContextEndsTheProgram(t *testing.T) {
	s := sshlab.Start(t)
	h := open(t, config(s))
	for _, trap := range []string{"", "trap '' TERM; "} {
		file := t.TempDir() + "/pid"
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := h.Run(ctx, command.Cmd{Name: "sh", Args: []string{"-c", trap + `echo $$ >"$1.new"; mv "$1.new" "$1"; while :; do sleep 0.1; done`, "sh", file}})
			ended <- err
		}()
		var pid string
		for pid == "" {
			b, _ := os.ReadFile(file)
			pid = strings.TrimSpace(string(b))
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat("/proc/" + pid); err != nil {
				break
			}
			if time.Now().After(limit) {
				t.Errorf("trap %q: the program runs on", trap)
				break
			}
		}
	}
}

func TestWhoIsLetIn(t *testing.T) {
	s := sshlab.Start(t)
	print := ssh.FingerprintSHA256(s.HostKey)
	place := strings.TrimPrefix(s.Host, "root@")
	dir := t.TempDir()
	text, err := os.ReadFile(s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, mode os.FileMode, text []byte) string {
		if err := errors.Join(os.WriteFile(dir+"/"+name, text, mode), os.Chmod(dir+"/"+name, mode)); err != nil { // whatever the umask is
			t.Fatal(err)
		}
		return dir + "/" + name
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	for _, row := range []struct {
		name       string
		key, known string
		words      []string
	}{
		{"unknown host", s.KeyFile, s.EmptyHostsFile, []string{"unknown", place, print, s.EmptyHostsFile}},
		{"changed key", s.KeyFile, s.OtherHostsFile, []string{"host " + place, s.OtherHostsFile + ", line 1"}},
		{"no known hosts", s.KeyFile, dir + "/none", []string{dir + "/none"}},
		{"bad known hosts", s.KeyFile, file("hosts", 0o600, []byte("what\n")), []string{dir + "/hosts:1"}},
		{"stranger", s.StrangerFile, s.KnownHostsFile, []string{"does not let root in", place, s.StrangerFile}},
		{"open key", file("open", 0o644, text), s.KnownHostsFile, []string{dir + "/open has mode 0644"}},
		{"no key file", dir + "/nokey", s.KnownHostsFile, []string{dir + "/nokey"}},
		{"no key", file("nonsense", 0o600, []byte("nonsense")), s.KnownHostsFile, []string{dir + "/nonsense"}},
		{"encrypted key", file("locked", 0o600, lockedKey(t)), s.KnownHostsFile, []string{dir + "/locked is encrypted", "agent"}},
	} {
		h := open(t, remote.Config{Address: s.Host, KeyFile: row.key, KnownHostsFile: row.known, ConnectLimit: patience})
		_, err := h.Run(t.Context(), command.Cmd{Name: "true"})
		if !fault.Is(err, fault.Permission) {
			t.Errorf("%s: %v is %v", row.name, err, fault.ClassOf(err))
			continue
		}
		for _, w := range row.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v does not say %q", row.name, err, w)
			}
		}
	}
}

func lockedKey(t *testing.T) []byte {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func TestAgent(t *testing.T) {
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
	socket := t.TempDir() + "/agent"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { defer c.Close(); _ = agent.ServeAgent(ring, c) })
		}
	})
	defer group.Wait()
	defer l.Close()
	t.Setenv("SSH_AUTH_SOCK", socket)
	h := open(t, remote.Config{Address: s.Host, KnownHostsFile: s.KnownHostsFile, ConnectLimit: patience, AnswerLimit: patience, DeadAfter: patience})
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); err != nil {
		t.Error(err)
	}
	if err := ring.RemoveAll(); err != nil {
		t.Fatal(err)
	}
	h = open(t, remote.Config{Address: s.Host, KnownHostsFile: s.KnownHostsFile, ConnectLimit: patience, AnswerLimit: patience, DeadAfter: patience})
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "agent") {
		t.Error(err)
	}
}

// TestManyPrograms: more at a time than one connection takes, here and on a host that takes few.
func TestManyPrograms(t *testing.T) {
	for _, lines := range [][]string{nil, {"MaxSessions 3"}, {"MaxSessions 1"}} {
		s := sshlab.Start(t, lines...)
		h := open(t, config(s))
		conn, err := h.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if _, err := conn.SFTP(t.Context()); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for i := range 6 {
			group.Go(func() {
				out, err := h.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", `sleep 0.1; echo "$1"`, "sh", fmt.Sprint(i)}})
				if err != nil || string(out) != fmt.Sprintln(i) {
					t.Errorf("%v: %q, %v", lines, out, err)
				}
			})
		}
		group.Wait()
		h.Close()
	}
}

func TestNoSessions(t *testing.T) {
	h := open(t, config(sshlab.Start(t, "MaxSessions 0")))
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

func TestProcess(t *testing.T) {
	h := open(t, config(sshlab.Start(t)))
	p, err := h.Start(t.Context(), command.Cmd{Name: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := p.Stdin.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.Stdout, b); err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
	p.Stdin.Close()
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	p, err = h.Start(t.Context(), command.Cmd{Name: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	p.End()
	var e *command.Error
	if err := p.Wait(t.Context()); !errors.As(err, &e) || e.Status != -1 {
		t.Error(err)
	}
}

// TestConnectionLost: what waits gets an error, the next use connects again.
func TestConnectionLost(t *testing.T) {
	s := sshlab.Start(t)
	h := open(t, config(s))
	p, err := h.Start(t.Context(), command.Cmd{Name: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := conn.SFTP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.KillConnections()
	if err := p.Wait(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	<-conn.Done()
	if _, err := files.Stat("/"); err == nil || !fault.Is(conn.Err(), fault.Unavailable) {
		t.Error(err, conn.Err())
	}
	conn.Release()
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); err != nil {
		t.Error(err)
	}
	s.Kill()
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), s.Host) {
		t.Error(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	for { // until the loss of the last connection was seen
		if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); err == nil {
			break
		}
	}
}

// TestDeadHost: a host that says nothing any more is given up, connected or not.
func TestDeadHost(t *testing.T) {
	s := sshlab.Start(t)
	c := config(s)
	c.KeepAlive, c.DeadAfter = 50*time.Millisecond, 5*time.Second
	h := open(t, c)
	p, err := h.Start(t.Context(), command.Cmd{Name: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := p.Wait(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "has not answered for 5s") {
		t.Error(err)
	}
	c.ConnectLimit = 300 * time.Millisecond // of a host that is stopped
	if _, err := open(t, c).Run(t.Context(), command.Cmd{Name: "true"}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no connection within 300ms") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Run(ctx, command.Cmd{Name: "true"}); !errors.Is(err, context.DeadlineExceeded) || !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	s := sshlab.Start(t)
	c := config(s)
	c.Idle = 100 * time.Millisecond
	h := open(t, c)
	conn, err := h.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(t.Context(), command.Cmd{Name: "sleep", Args: []string{"0.3"}}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-conn.Done():
		t.Error("ended in use")
	default:
	}
	conn.Release()
	<-conn.Done()
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); err != nil {
		t.Error(err)
	}
	h.Close()
	if _, err := h.Run(t.Context(), command.Cmd{Name: "true"}); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}
