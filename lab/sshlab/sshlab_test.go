package sshlab

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hayloft/internal/children"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// busy has the server run a program that starts others all the time, until it is killed.
func busy(t *testing.T, s *Server, file string) {
	t.Helper()
	text, err := os.ReadFile(s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	client, err := ssh.Dial("tcp", strings.TrimPrefix(s.Host, "root@"),
		&ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(s.HostKey)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("while :; do (/bin/echo x; (/bin/true)) | /bin/cat >>" + file + "; done"); err != nil {
		t.Fatal(err)
	}
}

func size(file string) int64 {
	fi, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// grows waits until the program goes on.
func grows(t *testing.T, file string) {
	t.Helper()
	for limit, before := time.Now().Add(patience), size(file); size(file) <= before; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("nothing runs over the connection")
		}
	}
}

// TestNothingEscapes: what starts others while it is stopped or killed is stopped or killed with them.
func TestNothingEscapes(t *testing.T) {
	s := Start(t)
	main := s.main.pid
	file := t.TempDir() + "/x"
	for range 5 {
		busy(t, s, file)
		grows(t, file)
		s.StopConnections()
		before := children.Under(main)
		if len(before) < 2 {
			t.Errorf("%v hang", before)
		}
		for _, pid := range before {
			p, err := openProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			if states := strings.Join(p.threads(), ""); strings.Trim(states, "TZ") != "" {
				t.Errorf("process %d is in states %s", pid, states)
			}
			p.dir.Close()
		}
		s.Continue()
		grows(t, file)
		s.KillConnections()
		if left := children.Under(main); s.Connections() != 0 {
			t.Errorf("%v are left", left)
		}
	}
	busy(t, s, file)
	grows(t, file)
	s.Stop()
	if s.Unread() != 0 {
		t.Errorf("%d bytes that nobody sent", s.Unread())
	}
	s.Continue()
	grows(t, file)
	s.Stop()
	s.Kill()
	s.Kill()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	busy(t, s, file)
	grows(t, file)
	s.Kill() // before the client leaves, without whom the program would go on
}
