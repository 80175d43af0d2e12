// Package ganeshalab is a real NFS server in user space, nfs-ganesha, for clients in user space such as QEMU's. Those find
// it by the portmapper, which is at a well-known port: so the test that wants it runs in a network namespace of its own
// (package ownspace), with the portmapper and the server on its loopback.
package ganeshalab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/lab/ownspace"
)

const (
	portmapper = 111
	nfs        = 2049
	mountd     = 20048
	startLimit = time.Minute
)

// Server exports Dir to everybody on its loopback, root included, with NFS 3 and 4. It ends with the test.
type Server struct {
	Dir string
	URL string // nfs://127.0.0.1 and Dir: what is below Dir is below it, for QEMU

	t      *testing.T
	state  string
	daemon *exec.Cmd
}

// Run has the test, whose name is t.Name(), do f with a server. f runs in a child process only, what is around the call
// in both.
func Run(t *testing.T, f func(t *testing.T, s *Server)) {
	t.Helper()
	ownspace.Run(t, ownspace.Mounts|ownspace.Network, func(t *testing.T) { f(t, start(t)) }, "ganesha.nfsd", "rpcbind")
}

func start(t *testing.T) *Server {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("loopback: %v", err)
	}
	// Both leave files there.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: t.TempDir(), t: t, state: t.TempDir()}
	s.URL = "nfs://127.0.0.1" + s.Dir
	if err := os.Mkdir("/run/ganesha", 0o755); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`NFS_CORE_PARAM { Protocols = 3, 4; NFS_Port = %d; MNT_Port = %d; Enable_NLM = false; Enable_RQUOTA = false; }
NFSV4 { Graceless = true; RecoveryRoot = %q; }
EXPORT { Export_Id = 1; Path = %q; Pseudo = "/export"; Access_Type = RW; Squash = No_Root_Squash; SecType = sys; Protocols = 3, 4; Transports = TCP; FSAL { Name = VFS; } }
`, nfs, mountd, s.state, s.Dir)
	if err := os.WriteFile(s.config(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end(s.launch("rpcbind", "-f", "-w")))
	s.await(portmapper)
	s.Resume()
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) config() string { return filepath.Join(s.state, "ganesha.conf") }

func (s *Server) launch(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.state, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

func (s *Server) end(cmd *exec.Cmd) func() {
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// await waits for a port of the loopback.
func (s *Server) await(port int) {
	s.t.Helper()
	for until := time.Now().Add(startLimit); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
			c.Close()
			return
		}
	}
	logs, _ := filepath.Glob(filepath.Join(s.state, "*.log"))
	for _, f := range logs {
		text, _ := os.ReadFile(f)
		s.t.Logf("%s: %s", filepath.Base(f), text)
	}
	s.t.Fatalf("nobody answers at port %d", port)
}

// Resume starts the server again after Stop.
func (s *Server) Resume() {
	s.t.Helper()
	s.daemon = s.launch("ganesha.nfsd", "-F", "-L", filepath.Join(s.state, "ganesha.log"), "-f", s.config(), "-p", "/run/ganesha.pid")
	s.await(mountd)
	s.await(nfs)
}

// Stop kills the server: its connections end, new ones are refused.
func (s *Server) Stop() {
	if s.daemon != nil {
		s.end(s.daemon)()
		s.daemon = nil
	}
}
