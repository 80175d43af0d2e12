package qemublock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
)

const (
	program    = "qemu-storage-daemon"
	exportName = "disk"
	quitLimit  = 10 * time.Second // storage that answers lets go in far less
	stderrTail = 2048             // bytes
)

// daemon is one child with one node, exported.
type daemon struct {
	dir      *private
	process  *os.Process
	patience time.Duration // with its end
	dead     chan struct{} // closed when it has ended
	status   error         // valid then
	stderr   tail
	monitor  *monitor
	clients  []*nbd.Client
	size     int64
	ctx      context.Context // ends with the child; what serves it goes along
	cancel   context.CancelFunc
	served   <-chan struct{} // nil: nothing
}

// tail keeps the end of what is written.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text) - stderrTail; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.text), "?"))
}

// supplies are what the options of a node refer to; the first error of getting them is kept.
type supplies struct {
	dir      *private
	secrets  []secretObject
	source   repository.Source
	format   string // "": none
	lowPorts bool   // the child may use ports below 1024
	err      error
}

// secretObject is QEMU's object of type secret.
type secretObject struct {
	Type   string `json:"qom-type"`
	ID     string `json:"id"`
	Data   string `json:"data"`
	Format string `json:"format"`
}

func (s *supplies) secret(value Secret, format string) string {
	id := fmt.Sprintf("secret%d", len(s.secrets))
	s.secrets = append(s.secrets, secretObject{"secret", id, string(value), format})
	return id
}

// copyOf puts a file that the child could not read where it can.
func (s *supplies) copyOf(path, name string) string {
	to := filepath.Join(s.dir.path, name)
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(to, text, 0o400)
	}
	if err == nil && s.dir.uid >= 0 {
		err = os.Chown(to, s.dir.uid, s.dir.uid)
	}
	if err != nil && s.err == nil {
		s.err = fault.Errorf(fault.Invalid, "%w", err)
	}
	return to
}

func (s *supplies) serve(source repository.Source) string {
	s.source = source
	return filepath.Join(s.dir.path, "below")
}

func startDaemon(ctx context.Context, o Options) (*daemon, error) {
	dir, err := newPrivate(place())
	if err != nil {
		return nil, err
	}
	s := &supplies{dir: dir}
	options := o.Node.options(s, common{NodeName: nodeName, ReadOnly: !o.Writable, Discard: "unmap", Cache: &cache{Direct: true}})
	if s.err != nil {
		return nil, errors.Join(s.err, dir.remove())
	}
	d := &daemon{dir: dir, patience: min(quitLimit, o.Limit), dead: make(chan struct{})}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	err = d.spawn(ctx, s)
	if err == nil {
		err = d.open(ctx, s, options, o)
	}
	if err == nil {
		return d, nil
	}
	switch {
	case ctx.Err() != nil:
		err = fault.Errorf(fault.Unavailable, "the storage did not let itself be opened in time: %w%s", context.Cause(ctx), d.said())
	case d.process != nil && d.diedOf(err):
		err = fault.Errorf(fault.Unavailable, "%w", d.why())
	}
	d.kill()
	d.end()
	return nil, err
}

// diedOf says whether the child has ended, which is why err came. A connection to it that broke may be a little older than
// its end: that is waited for.
func (d *daemon) diedOf(err error) bool {
	if r := (*refusal)(nil); errors.As(err, &r) || !fault.Is(err, fault.Unavailable) {
		return d.isDead()
	}
	select {
	case <-d.dead:
		return true
	case <-time.After(d.patience):
		return false
	}
}

// spawn starts the process with one end of the monitor's socket.
func (d *daemon) spawn(ctx context.Context, s *supplies) error {
	path, err := exec.LookPath(program)
	if err != nil {
		close(d.dead)
		return fault.Errorf(fault.Unsupported, "program %s is not installed", program)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		close(d.dead)
		return err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor of child")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command(path, "--chardev", "socket,id=monitor,fd=3", "--monitor", "chardev=monitor")
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LANG=C", "HOME=" + s.dir.path}
	cmd.ExtraFiles, cmd.Stderr, cmd.WaitDelay = []*os.File{theirs}, &d.stderr, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if s.dir.uid >= 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.dir.uid), Gid: uint32(s.dir.uid)}
		if s.lowPorts {
			cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_BIND_SERVICE}
		}
	}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // the child ends with the thread that made it
		defer runtime.UnlockOSThread()
		defer d.cancel()    // ends requests, which then look
		defer close(d.dead) // here
		err := cmd.Start()
		begun <- err
		if err == nil {
			d.status = cmd.Wait()
		}
	}()
	if err := <-begun; err != nil {
		return err
	}
	d.process = cmd.Process
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	theirs.Close()
	d.monitor, err = newMonitor(ctx, conn)
	if err != nil {
		conn.Close()
	}
	return err
}

type nbdServerStart struct {
	Address struct {
		Type string `json:"type"`
		Data struct {
			Path string `json:"path"`
		} `json:"data"`
	} `json:"addr"`
	MaxConnections int `json:"max-connections"`
}

type blockExport struct {
	Type     string `json:"type"`
	ID       string `json:"id"`
	NodeName string `json:"node-name"`
	Name     string `json:"name"`
	Writable bool   `json:"writable"`
}

type exportDelete struct {
	ID   string `json:"id"`
	Mode string `json:"mode"`
}

type blockResize struct {
	NodeName string `json:"node-name"`
	Size     int64  `json:"size"`
}

func (d *daemon) socket() string { return filepath.Join(d.dir.path, "disk") }

// open has the child open the node and export it.
func (d *daemon) open(ctx context.Context, s *supplies, options any, o Options) (err error) {
	if s.source != nil {
		if d.served, err = listen(d.ctx, filepath.Join(d.dir.path, "below"), d.dir.uid, s.source); err != nil {
			return err
		}
	}
	for _, secret := range s.secrets {
		err := d.monitor.run(ctx, "object-add", secret, nil)
		if r := (*refusal)(nil); errors.As(err, &r) {
			return fault.Errorf(fault.Invalid, "secret: %w", err)
		}
		if err != nil {
			return err
		}
	}
	if err := d.monitor.run(ctx, "blockdev-add", options, nil); err != nil {
		return fault.Errorf(classOf(err), "%w%s", err, d.said())
	}
	if s.format != "" {
		var nodes []graphNode
		if err := d.monitor.run(ctx, "query-named-block-nodes", struct {
			Flat bool `json:"flat"`
		}{true}, &nodes); err != nil {
			return err
		}
		if err := whole(s.format, nodes); err != nil {
			return err
		}
	}
	var start nbdServerStart
	start.Address.Type, start.Address.Data.Path, start.MaxConnections = "unix", d.socket(), 2*o.Connections
	if err := d.monitor.run(ctx, "nbd-server-start", start, nil); err != nil {
		return err
	}
	return d.export(ctx, o)
}

// export makes the export and connects to it.
func (d *daemon) export(ctx context.Context, o Options) error {
	e := blockExport{Type: "nbd", ID: exportName, NodeName: nodeName, Name: exportName, Writable: o.Writable}
	if err := d.monitor.run(ctx, "block-export-add", e, nil); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, d.kill)
	defer stop()
	dialer := nbd.Dialer{Patience: o.Limit, Log: slog.New(slog.DiscardHandler), Whole: true} // errors say it all
	for range o.Connections {
		c, err := dialer.Dial(d.ctx, "unix", d.socket(), exportName)
		if err != nil {
			return err
		}
		d.clients = append(d.clients, c)
	}
	d.size = d.clients[0].Size()
	return nil
}

// unexport is the opposite of export.
func (d *daemon) unexport(ctx context.Context) error {
	d.disconnect()
	return d.monitor.run(ctx, "block-export-del", exportDelete{exportName, "hard"}, nil, "BLOCK_EXPORT_DELETED")
}

func (d *daemon) disconnect() {
	for _, c := range d.clients {
		_ = c.Close()
	}
	d.clients = nil
}

func (d *daemon) isDead() bool {
	select {
	case <-d.dead:
		return true
	default:
		return false
	}
}

// why is for a child that is dead.
func (d *daemon) why() error {
	status := "ended"
	if d.status != nil {
		status = d.status.Error()
	}
	return fmt.Errorf("%s is gone: %s%s", program, status, d.said())
}

// said is what the child complained about, for the end of an error.
func (d *daemon) said() string {
	if text := d.stderr.String(); text != "" {
		return " (" + program + ": " + text + ")"
	}
	return ""
}

func (d *daemon) kill() {
	if d.process != nil && !d.isDead() {
		_ = d.process.Kill()
	}
}

// end lets the child close the node, kills it when that takes too long, and removes all there is of it.
func (d *daemon) end() {
	if !d.isDead() && d.monitor != nil {
		d.disconnect()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), d.patience)
		if d.monitor.run(ctx, "quit", nil, nil) == nil {
			select {
			case <-d.dead:
			case <-ctx.Done():
			}
		}
		cancel()
	}
	d.kill()
	<-d.dead
	d.cancel()
	d.disconnect()
	if d.monitor != nil {
		_ = d.monitor.conn.Close()
	}
	if d.served != nil {
		<-d.served
	}
	_ = d.dir.remove()
}

// classOf reads the class from QEMU's words: it has no other way to tell.
func classOf(err error) fault.Class {
	var r *refusal
	if !errors.As(err, &r) {
		return fault.ClassOf(err)
	}
	text := strings.ToLower(r.Description)
	for _, row := range []struct {
		part  string
		class fault.Class
	}{
		{"no such file or directory", fault.NotFound}, {"nfs3err_noent", fault.NotFound},
		{"nfs3err_acces", fault.Permission}, {"nfs3err_perm", fault.Permission}, {"is a directory", fault.Invalid}, {"not found", fault.NotFound}, {"permission denied", fault.Permission},
		{"operation not permitted", fault.Permission}, {"authentication", fault.Permission}, {"authorization", fault.Permission},
		{"access denied", fault.Permission}, {"read-only file system", fault.Permission}, {"no space left", fault.OutOfSpace},
		{"disk quota exceeded", fault.OutOfSpace}, {"device or resource busy", fault.Busy}, {"reservation conflict", fault.Busy},
		{"unknown driver", fault.Unsupported}, {"does not accept value", fault.Unsupported}, {"not supported", fault.Unsupported},
		{"does not support", fault.Unsupported}, {"invalid parameter", fault.Unsupported},
	} {
		if strings.Contains(text, row.part) {
			return row.class
		}
	}
	return fault.Unavailable
}
