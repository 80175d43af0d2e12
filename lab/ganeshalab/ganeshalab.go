// Package ganeshalab is a real NFS server in user space, nfs-ganesha, for clients in user space such as QEMU's. Those find
// it by the portmapper, which is at a well-known port: so the test that wants it runs in a network namespace of its own
// (package ownspace), with the portmapper and the server on its loopback.
package ganeshalab

import (
	"context"
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

	"hayloft/internal/command"
	"hayloft/lab/ownspace"
)

const (
	portmapper = 111
	nfs        = 2049
	mountd     = 20048
	startLimit = 2 * time.Minute
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
	ownspace.Run(t, ownspace.Mounts|ownspace.Network, func(t *testing.T) { f(t, start(t)) }, "ganesha.nfsd", "rpcbind", "rpcinfo")
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
	s.await("rpcbind to answer", func() error {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", portmapper), startLimit)
		if err != nil {
			return err
		}
		return c.Close()
	})
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

// await waits until ready gives no error.
func (s *Server) await(what string, ready func() error) {
	s.t.Helper()
	var err error
	for until := time.Now().Add(startLimit); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if err = ready(); err == nil {
			return
		}
	}
	logs, _ := filepath.Glob(filepath.Join(s.state, "*.log"))
	for _, f := range logs {
		text, _ := os.ReadFile(f)
		s.t.Logf("%s: %s", filepath.Base(f), text)
	}
	s.t.Fatalf("waited for %s: %v", what, err)
}

// programs are those that clients ask the portmapper for, with their versions: NFS and the mount protocol.
var programs = [][2]string{{"100003", "3"}, {"100003", "4"}, {"100005", "1"}, {"100005", "3"}}

// rpcinfo asks the portmapper.
func (s *Server) rpcinfo(args ...string) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), startLimit)
	defer cancel()
	_, err := command.Exec{}.Run(ctx, command.Cmd{Name: "rpcinfo", Args: args})
	return err
}

// Resume starts the server again after Stop. It listens for a while before the portmapper knows it, so both are asked.
func (s *Server) Resume() {
	s.t.Helper()
	s.daemon = s.launch("ganesha.nfsd", "-F", "-L", filepath.Join(s.state, "ganesha.log"), "-f", s.config(), "-p", "/run/ganesha.pid")
	for _, p := range programs {
		s.await("program "+p[0]+" to answer", func() error { return s.rpcinfo("-T", "tcp", "127.0.0.1", p[0], p[1]) })
	}
}

// Stop kills the server: its connections end, new ones are refused, and the portmapper forgets it.
func (s *Server) Stop() {
	if s.daemon == nil {
		return
	}
	s.end(s.daemon)()
	s.daemon = nil
	for _, p := range programs {
		_ = s.rpcinfo("-d", p[0], p[1]) // it may not have come so far
	}
}
