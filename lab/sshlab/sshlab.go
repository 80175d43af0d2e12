// Package sshlab is a real sshd for tests: on a free port of the loopback, with host and user keys of its own in a
// temporary directory. No login of the machine is changed: the one key that it accepts is the test's.
package sshlab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"

	"hayloft/lab/labtest"
	"hayloft/lab/port"
)

// Server is one sshd, which lets root in.
type Server struct {
	Host           string // root@127.0.0.1:PORT
	Port           int
	KeyFile        string // lets in
	StrangerFile   string // a key that does not
	KnownHostsFile string // has the server's key
	OtherHostsFile string // has another key for the server
	EmptyHostsFile string // has none
	HostKey        ssh.PublicKey

	dir     string
	program string

	mu     sync.Mutex
	main   *process   // sshd itself; nil before the first start
	halted []*process // by Stop or StopConnections
}

// Start starts sshd with further lines of configuration, which come before its own and so win. It ends with the
// test, and when the test's process is killed.
func Start(t testing.TB, lines ...string) *Server {
	t.Helper()
	labtest.Root(t, "sshd")
	s, err := New(t.TempDir(), lines...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// New is Start without a test; keys and log are made in dir, and Kill ends it.
func New(dir string, lines ...string) (*Server, error) {
	program, err := exec.LookPath("sshd") // sshd wants to be called by an absolute path
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd refuses to start without
		return nil, err
	}
	number, err := port.Free("127.0.0.1")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, program: program, Port: number, KeyFile: dir + "/user", StrangerFile: dir + "/stranger",
		KnownHostsFile: dir + "/known_hosts", OtherHostsFile: dir + "/other_hosts", EmptyHostsFile: dir + "/empty_hosts"}
	s.Host = fmt.Sprintf("root@127.0.0.1:%d", s.Port)
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "MaxStartups") }) {
		lines = append(slices.Clone(lines), "MaxStartups 100") // of this, sshd takes the last
	}
	keys := map[string]ssh.PublicKey{}
	for _, file := range []string{dir + "/host", s.KeyFile, s.StrangerFile, dir + "/otherhost"} {
		if keys[file], err = newKey(file); err != nil {
			return nil, err
		}
	}
	s.HostKey = keys[dir+"/host"]
	place := []string{knownhosts.Normalize(fmt.Sprintf("127.0.0.1:%d", s.Port))}
	for file, text := range map[string]string{
		s.KnownHostsFile:         knownhosts.Line(place, s.HostKey) + "\n",
		s.OtherHostsFile:         knownhosts.Line(place, keys[dir+"/otherhost"]) + "\n",
		s.EmptyHostsFile:         "",
		dir + "/authorized_keys": string(ssh.MarshalAuthorizedKey(keys[s.KeyFile])),
		dir + "/sshd_config": strings.Join(append(lines,
			"Port "+fmt.Sprint(s.Port), "ListenAddress 127.0.0.1", "HostKey "+dir+"/host", "PidFile none",
			"AuthorizedKeysFile "+dir+"/authorized_keys", "StrictModes no", "UsePAM no", "PermitRootLogin prohibit-password",
			"PasswordAuthentication no", "KbdInteractiveAuthentication no", "LogLevel VERBOSE",
			"Subsystem sftp internal-sftp",
			"SetEnv SHLVL=2", // bash leaves the user's .bashrc alone then
		), "\n") + "\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return s, s.Restart()
}

// Options are the attributes of a datastore on this server.
func (s *Server) Options() map[string]string {
	return map[string]string{"HOST": s.Host, "KEY_FILE": s.KeyFile, "KNOWN_HOSTS_FILE": s.KnownHostsFile}
}

// Restart starts sshd again after Kill, on the same port with the same keys, in the network namespace of the calling thread.
func (s *Server) Restart() error {
	space, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer space.Close()
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.program, "-D", "-e", "-f", s.dir+"/sshd_config")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun, ended := make(chan error), make(chan struct{})
	var main *process
	go func() { // ends with sshd, at Kill
		// sshd ends with the thread that made it. Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		defer close(ended)
		err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			main, err = openProcess(cmd.Process.Pid) // before it is waited for: its number is its own until then
			if err != nil {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		}
		begun <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-begun; err != nil {
		return err
	}
	s.mu.Lock()
	if s.main != nil {
		s.main.dir.Close()
	}
	s.main = main
	s.mu.Unlock()
	// No connection is made to find out: sshd would go on with that one for a while.
	for limit := time.Now().Add(patience); !main.listens(); time.Sleep(5 * time.Millisecond) {
		select {
		case <-ended:
			return fmt.Errorf("sshd does not start: %s", s.Log())
		default:
		}
		if time.Now().After(limit) {
			s.Kill()
			return fmt.Errorf("sshd does not listen: %s", s.Log())
		}
	}
	return nil
}

// patience ends a hang; nothing here takes nearly as long.
const patience = 2 * time.Minute

// Kill ends sshd and all its connections at once, what ran over them included, as a power cut of its host does: none of
// them gets to see the end of another. They have ended when it returns.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != nil {
		end(append(s.halted, halt([]*process{s.main})...))
		s.main, s.halted = nil, nil
	}
}

// KillConnections ends the connections that there are, as Kill does; new ones are accepted.
func (s *Server) KillConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != nil {
		end(halt(s.main.children()))
	}
}

// StopConnections makes the connections that there are hang; new ones are accepted. When it returns they hang.
func (s *Server) StopConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != nil {
		s.halted = append(s.halted, halt(s.main.children())...)
	}
}

// Stop makes the server hang: it and what runs over its connections. The kernel goes on taking what fits into its buffers.
// When it returns they hang.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != nil {
		s.halted = append(s.halted, halt([]*process{s.main})...)
	}
}

// Continue takes Stop and StopConnections back.
func (s *Server) Continue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range slices.Backward(s.halted) { // children first: they don't find out that they were stopped
		p.signal(unix.SIGCONT)
		if p != s.main {
			p.dir.Close()
		}
	}
	s.halted = nil
}

// Connections counts the connections that are logged in or about to.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main == nil {
		return 0
	}
	all := s.main.children()
	defer closeAll(all)
	n := 0
	for _, p := range all {
		if !p.ended() {
			n++
		}
	}
	return n
}

// Unread is how many bytes the server's kernel has for what Stop or StopConnections has made hang.
func (s *Server) Unread() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	inodes := map[string]bool{} // several processes may have the same socket
	bytes := 0
	for _, p := range s.halted {
		for _, socket := range p.sockets() {
			if !inodes[socket.inode] && socket.state != listening {
				inodes[socket.inode] = true
				bytes += socket.unread
			}
		}
	}
	return bytes
}

// Log is what sshd has said.
func (s *Server) Log() string {
	b, _ := os.ReadFile(s.dir + "/log")
	return string(b)
}

// newKey writes a private key and gives its public part.
func newKey(path string) (ssh.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "sshlab")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return ssh.NewPublicKey(public)
}
