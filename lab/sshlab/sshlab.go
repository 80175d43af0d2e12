// Package sshlab is a real sshd for tests: on a free port of the loopback, with host and user keys of its own in a
// temporary directory. No login of the machine is changed: the one key that it accepts is the test's.
package sshlab

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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
	cmd     *exec.Cmd
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
	s.cmd = exec.Command(s.program, "-D", "-e", "-f", s.dir+"/sshd_config")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun, ended := make(chan error), make(chan struct{})
	go func(cmd *exec.Cmd) { // ends with sshd, at Kill
		// sshd ends with the thread that made it. Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		defer close(ended)
		err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		begun <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}(s.cmd)
	if err := <-begun; err != nil {
		return err
	}
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
		if err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("sshd does not start: %s", s.Log())
		default:
		}
		if time.Now().After(limit) {
			s.Kill()
			return fmt.Errorf("sshd does not answer: %s", s.Log())
		}
	}
}

// Kill ends sshd and all its connections at once, what ran over them included, as a power cut of its host does.
func (s *Server) Kill() {
	all := s.tree()
	signal(all[:1], unix.SIGSTOP) // forks no more
	signal(s.tree(), unix.SIGKILL)
	waitGone(all)
}

// KillConnections ends the connections that there are; new ones are accepted.
func (s *Server) KillConnections() {
	all := s.tree()[1:]
	signal(all, unix.SIGKILL)
	waitGone(all)
}

// StopConnections makes the connections that there are hang; new ones are accepted.
func (s *Server) StopConnections() { signal(s.tree()[1:], unix.SIGSTOP) }

// Stop makes the server hang: it and what runs over its connections. The kernel goes on taking what fits into its buffers.
func (s *Server) Stop() { signal(s.tree(), unix.SIGSTOP) }

// Continue takes Stop back.
func (s *Server) Continue() { signal(s.tree(), unix.SIGCONT) }

// Connections counts the connections that are logged in or about to.
func (s *Server) Connections() int { return len(children(s.cmd.Process.Pid)) }

// Log is what sshd has said.
func (s *Server) Log() string {
	b, _ := os.ReadFile(s.dir + "/log")
	return string(b)
}

// tree is sshd and all that it started, itself first.
func (s *Server) tree() []int {
	all := []int{s.cmd.Process.Pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children(all[i])...)
	}
	return all
}

func children(pid int) []int {
	var list []int
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range threads {
		b, _ := os.ReadFile(file)
		for _, f := range bytes.Fields(b) {
			var child int
			if _, err := fmt.Sscan(string(f), &child); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}

func signal(pids []int, s unix.Signal) {
	for _, pid := range pids {
		_ = unix.Kill(pid, s)
	}
}

// waitGone waits until the processes have ended, which they have been told to.
func waitGone(pids []int) {
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(2 * time.Millisecond) {
		alive := false
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if i := bytes.LastIndexByte(b, ')'); err == nil && i > 0 && !bytes.HasPrefix(b[i:], []byte(") Z")) {
				alive = true
			}
		}
		if !alive {
			return
		}
	}
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
