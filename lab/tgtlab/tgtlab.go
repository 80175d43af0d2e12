// Package tgtlab is a real tgtd for tests and benchmarks: on a free port of the loopback, with a control socket in a temporary directory,
// so that the machine's own one, if there is one, is not touched.
package tgtlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
	"hayloft/lab/port"
)

// Server is one tgtd, without any target.
type Server struct {
	Portal string // 127.0.0.1:PORT
	socket string

	process *os.Process
	ended   chan struct{} // closed when the process has ended
	said    *output
}

// output is what tgtd says.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Start starts tgtd. It ends with the test, and when the test's process is killed.
func Start(t testing.TB) *Server {
	t.Helper()
	labtest.Root(t, "tgtd", "tgtadm")
	dir, err := os.MkdirTemp("", "tgt") // short: it is for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// New is Start without a test; the socket is in dir, whose path is short, and Kill ends it.
func New(dir string) (*Server, error) {
	number, err := port.Free("127.0.0.1")
	if err != nil {
		return nil, err
	}
	s := &Server{Portal: fmt.Sprintf("127.0.0.1:%d", number), socket: filepath.Join(dir, "s")}
	return s, s.Restart()
}

// Restart starts tgtd again after Kill, at the same portal; it has forgotten all targets and accounts.
func (s *Server) Restart() error {
	cmd := exec.Command("tgtd", "-f", "--iscsi", "portal="+s.Portal)
	cmd.Env = append(os.Environ(), s.environment()...)
	s.said = &output{}
	cmd.Stdout, cmd.Stderr = s.said, s.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the child ends with the thread that made it
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		begun <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-begun; err != nil {
		return err
	}
	s.process, s.ended = cmd.Process, ended
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := s.Tgtadm("--op", "show", "--mode", "target"); err == nil {
			if conn, err := net.Dial("tcp", s.Portal); err == nil {
				return conn.Close()
			}
		}
		select {
		case <-ended:
			return fmt.Errorf("tgtd does not start: %s", s.Log())
		default:
		}
		if time.Now().After(limit) {
			s.Kill()
			return errors.New("tgtd does not answer: " + s.Log())
		}
	}
}

func (s *Server) environment() []string { return []string{"TGT_IPC_SOCKET=" + s.socket} }

// Kill ends tgtd at once; what it wrote is with the kernel.
func (s *Server) Kill() {
	_ = s.process.Kill()
	<-s.ended
}

// Stop makes tgtd hang: it does nothing any more when this returns.
func (s *Server) Stop() error { return labtest.Halt(s.process.Pid) }

// Continue takes Stop back.
func (s *Server) Continue() { _ = s.process.Signal(syscall.SIGCONT) }

// Log is what tgtd has said since it was started.
func (s *Server) Log() string { return s.said.String() }

// Tgtadm gives tgtd an order.
func (s *Server) Tgtadm(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := s.Runner(command.Exec{}).Run(ctx, command.Cmd{Name: "tgtadm", Args: append([]string{"--lld", "iscsi"}, args...)})
	return string(out), err
}

// Serve makes a target, of that number and name, with a file as its unit 1, for everybody and reading only.
func (s *Server) Serve(number int, name, file string) error {
	tid := strconv.Itoa(number)
	for _, args := range [][]string{
		{"--op", "new", "--mode", "target", "--tid", tid, "--targetname", name},
		{"--op", "new", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "--backing-store", file},
		{"--op", "update", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "--params", "readonly=1"},
		{"--op", "bind", "--mode", "target", "--tid", tid, "--initiator-address", "ALL"},
	} {
		if _, err := s.Tgtadm(args...); err != nil {
			return err
		}
	}
	return nil
}

// Account makes an account for CHAP.
func (s *Server) Account(user, password string) error {
	_, err := s.Tgtadm("--op", "new", "--mode", "account", "--user", user, "--password", password)
	return err
}

// Targets counts the targets.
func (s *Server) Targets() (int, error) {
	out, err := s.Tgtadm("--op", "show", "--mode", "target")
	return strings.Count("\n"+out, "\nTarget "), err
}

// Runner gives a Runner whose tgtadm talks to this tgtd.
func (s *Server) Runner(next command.Runner) command.Runner { return here{s, next} }

type here struct {
	server *Server
	next   command.Runner
}

func (h here) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	if cmd.Name == "tgtadm" {
		cmd.Env = append(append([]string(nil), cmd.Env...), h.server.environment()...)
	}
	return h.next.Run(ctx, cmd)
}
