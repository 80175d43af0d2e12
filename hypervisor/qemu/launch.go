package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/qemu/qmp"
	"hayloft/internal/undo"
)

// restoreLimit bounds reading a machine's saved memory.
const restoreLimit = 30 * time.Minute

// maxThreads bounds a machine's process: its virtual CPUs and QEMU's own threads.
const maxThreads = 512

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, m hypervisor.Machine) error {
	turn, done, err := d.turns.Take(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("domain %d: %w", m.ID, err)
	}
	defer done()
	dom := d.find(m.ID)
	if dom != nil {
		if err := d.settle(turn, dom); err != nil {
			return err
		}
		if dom.process() != nil {
			return nil
		}
	}
	if err := d.start(turn, dom, m); err != nil {
		return interrupted(turn, fmt.Errorf("domain %d: %w", m.ID, err))
	}
	return nil
}

// settle waits for a domain whose end is decided to be gone.
func (d *Driver) settle(ctx context.Context, dom *domain) error {
	dom.mu.Lock()
	p, ending := dom.proc, dom.rec.Ending.Status != ""
	dom.mu.Unlock()
	if p == nil || !ending {
		return nil
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return interrupted(ctx, fmt.Errorf("domain %d: %w", dom.id, ctx.Err()))
	}
}

// start boots m in place of the ended domain old, which is nil when there is none. It has the turn.
func (d *Driver) start(ctx context.Context, old *domain, m hypervisor.Machine) error {
	limit := d.config.StartLimit
	if m.Restore != "" {
		limit = restoreLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l, err := d.prepare(ctx, m)
	if err != nil {
		return err
	}
	defer l.close()

	var made undo.Stack
	defer made.Run()
	if err := d.makeRuntimeDir(m, l, &made); err != nil {
		return err
	}
	dom := newDomain(l.rec)
	made.Push(func() error { return d.takeBack(old, dom) })
	if err := d.store(l.rec); err != nil {
		return err
	}
	d.mu.Lock()
	d.domains[m.ID] = dom
	d.mu.Unlock()
	if err := d.launch(ctx, dom, m, l, &made); err != nil {
		return err
	}
	made.Keep()
	d.log.Info("domain started", "domain", m.ID, "pid", dom.view().PID, "accelerator", l.rec.Platform.Accelerator, "restored", m.Restore != "")
	d.events.Add(m.ID)
	return nil
}

// takeBack puts the domain that was there before a failed Start in place of the new one.
func (d *Driver) takeBack(old, dom *domain) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old == nil {
		delete(d.domains, dom.id)
		return d.forget(dom.id)
	}
	d.domains[dom.id] = old
	return d.store(old.record())
}

// launching is what a Start has prepared.
type launching struct {
	rec        record
	line       commandLine
	state      *os.File // saved memory to continue from, behind its header; nil to boot
	uid, gid   int
	groups     []uint32
	sockets    []*os.File
	vhostFiles []*os.File
}

func (l *launching) close() {
	for _, f := range append(append(l.sockets, l.vhostFiles...), l.state) {
		if f != nil {
			f.Close()
		}
	}
}

// prepare checks everything that can be checked before anything is made.
func (d *Driver) prepare(ctx context.Context, m hypervisor.Machine) (*launching, error) {
	h, err := d.probed(ctx)
	if err != nil {
		return nil, err
	}
	p, err := h.platform(m)
	if err != nil {
		return nil, err
	}
	l := &launching{uid: m.UID, gid: m.GID}
	if l.uid == 0 {
		l.uid = d.config.UID
	}
	if l.gid == 0 {
		l.gid = d.config.GID
	}
	vhost := false
	if p.Accelerator == "kvm" {
		l.groups = kvmGroup()
		_, err := os.Stat("/dev/vhost-net")
		vhost = err == nil
	}
	l.rec = record{ID: m.ID, Name: m.Name, Dir: m.Dir, Nonce: rand.Text(), Phase: starting, Platform: p}
	var kHz uint64
	if p.Accelerator == "tcg" && strings.HasPrefix(p.Machine, "microvm") {
		kHz = d.tsc()
	}
	build := func() error {
		l.line, err = buildCommandLine(m, settings{platform: l.rec.Platform, runtimeDir: l.rec.runtimeDir(),
			tbSizeMB: d.config.TBSizeMB, nbdReconnect: d.config.NBDReconnect, vhost: vhost, tscKHz: kHz})
		return err
	}
	if err := build(); err != nil {
		return nil, err
	}
	if m.Restore != "" {
		saved, f, err := openState(m.Restore)
		if err != nil {
			return nil, err
		}
		l.state = f
		if l.rec.Platform, err = saved.fitting(p, h.Version); err != nil {
			l.close()
			return nil, err
		}
		if err := build(); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// kvmGroup is the group that may use /dev/kvm, where that is not everybody or root only.
func kvmGroup() []uint32 {
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) == nil && st.Gid != 0 && st.Mode&0o060 == 0o060 {
		return []uint32{st.Gid}
	}
	return nil
}

// makeRuntimeDir makes the directory, the logs and the listening sockets.
func (d *Driver) makeRuntimeDir(m hypervisor.Machine, l *launching, made *undo.Stack) error {
	dir := l.rec.runtimeDir()
	err := os.Mkdir(dir, 0o711)
	if err == nil {
		made.Push(func() error { return os.RemoveAll(dir) })
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("runtime directory: %w", err)
	}
	// QEMU opens the console log itself, as the user it runs as.
	log, err := os.OpenFile(filepath.Join(dir, consoleLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("console log: %w", err)
	}
	defer log.Close()
	if os.Geteuid() == 0 {
		if err := log.Chown(l.uid, l.gid); err != nil {
			return fmt.Errorf("console log: %w", err)
		}
	}
	for _, name := range []string{qmpSocket, consoleSocket} {
		f, err := qmp.ListenSocket(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		l.sockets = append(l.sockets, f)
	}
	for range l.line.vhost {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("vhost: %w", err)
		}
		l.vhostFiles = append(l.vhostFiles, f)
	}
	return nil
}

// launch starts the process with its virtual CPUs stopped, records it, and lets it run.
func (d *Driver) launch(ctx context.Context, dom *domain, m hypervisor.Machine, l *launching, made *undo.Stack) error {
	p, err := d.spawn(dom, m, l)
	if err != nil {
		return err
	}
	made.Push(func() error { return d.discard(dom, p) })
	// QEMU must be the only one that listens, so that its death ends our connection.
	for _, f := range l.sockets {
		f.Close()
	}
	l.sockets = nil
	client, err := qmp.Dial(ctx, l.rec.path(qmpSocket))
	if err != nil {
		return d.blame(ctx, dom, p, err)
	}
	d.attach(dom, p, client)
	if m.Graphics != nil && m.Graphics.Password != "" {
		args := map[string]string{"protocol": "vnc", "password": m.Graphics.Password}
		if err := client.Execute(ctx, "set_password", args, nil); err != nil {
			return d.blame(ctx, dom, p, err)
		}
	}
	if l.state != nil {
		if err := d.load(ctx, dom, client, l.state); err != nil {
			return d.blame(ctx, dom, p, fmt.Errorf("saved state %s: %w", m.Restore, err))
		}
	}
	dom.mu.Lock()
	if dom.proc == p {
		err = d.change(dom, func(r *record) { r.Phase, r.PID = running, p.pid })
	} else {
		err = errors.New("QEMU ended")
	}
	dom.mu.Unlock()
	if err != nil {
		return d.blame(ctx, dom, p, err)
	}
	// From here a guest that ends at once is a machine that was started and ended.
	if err := client.Execute(ctx, "cont", nil, nil); err != nil {
		dom.mu.Lock()
		gone := dom.rec.Phase == ended || dom.rec.Ending.Status != ""
		dom.mu.Unlock()
		if !gone {
			return d.blame(ctx, dom, p, err)
		}
	}
	return ctx.Err()
}

// spawn starts QEMU in its control group, in a session and under a user of its own.
func (d *Driver) spawn(dom *domain, m hypervisor.Machine, l *launching) (*process, error) {
	cmd := exec.Command(d.binary, l.line.args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", nonceVariable + "=" + l.rec.Nonce}
	log, err := os.OpenFile(l.rec.path(qemuLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append(cmd.ExtraFiles, l.sockets...)
	for _, nic := range l.line.taps {
		cmd.ExtraFiles = append(cmd.ExtraFiles, m.NICs[nic].Tap)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, l.vhostFiles...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(l.uid), Gid: uint32(l.gid), Groups: l.groups}
	}
	if err := d.spawnIn(cmd, m); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	p, err := openProcess(pid, "")
	if p == nil {
		if err == nil {
			_, err = cmd.Process.Wait()
			err = errors.Join(err, fmt.Errorf("qemu: %s", joinReason("ended at once", words(l.rec.runtimeDir()))))
		} else {
			err = errors.Join(err, cmd.Process.Kill())
			_, _ = cmd.Process.Wait()
		}
		d.removeGroup(m.ID)
		return nil, err
	}
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if d.ctx.Err() != nil { // Close has been here, and waits for no watcher that comes now
		p.fd.Close()
		err := errors.Join(errors.New("driver closed"), cmd.Process.Kill())
		_, _ = cmd.Process.Wait()
		d.removeGroup(m.ID)
		return nil, err
	}
	_ = cmd.Process.Release() // the watcher reaps it
	dom.rec.PID, dom.rec.Started = pid, time.Now()
	d.hold(dom, p)
	return p, nil
}

func (d *Driver) spawnIn(cmd *exec.Cmd, m hypervisor.Machine) error {
	if d.groups == nil {
		return cmd.Start()
	}
	g, err := d.groups.Create(groupName(m.ID), cgroup.Limits{CPU: m.CPU, PIDs: maxThreads + m.VCPU})
	if err != nil {
		return err
	}
	if err := g.Start(cmd); err != nil {
		d.removeGroup(m.ID)
		return err
	}
	return nil
}

func groupName(id int) string { return "qemu-" + strconv.Itoa(id) }

// removeGroup takes away the control group of a machine whose process is gone, with what may be left in it.
func (d *Driver) removeGroup(id int) {
	if err := d.killGroup(id); err != nil {
		d.log.Warn("control group not emptied", "domain", id, "err", err)
	}
	if d.groups == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), groupLimit)
	defer cancel()
	if g, err := d.groups.Open(groupName(id)); err == nil {
		if err := g.Remove(ctx); err != nil {
			d.log.Warn("control group not removed", "domain", id, "err", err)
		}
	}
}

func (d *Driver) killGroup(id int) error {
	if d.groups == nil {
		return nil
	}
	g, err := d.groups.Open(groupName(id))
	if err != nil {
		return nil // there is none
	}
	return g.Kill()
}

// discard ends the process of a failed Start and waits until it is gone.
func (d *Driver) discard(dom *domain, p *process) error {
	dom.mu.Lock()
	dom.rec.Phase = starting // its end is not news
	dom.mu.Unlock()
	err := errors.Join(p.kill(), d.killGroup(dom.id))
	select {
	case <-p.ended:
	case <-time.After(quitLimit):
		err = errors.Join(err, fmt.Errorf("process %d does not end", p.pid))
	case <-d.ctx.Done():
	}
	return err
}

// blame gives QEMU's own words as the cause when it ended, instead of the connection that broke.
func (d *Driver) blame(ctx context.Context, dom *domain, p *process, err error) error {
	var refused *qmp.Error
	if errors.As(err, &refused) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	select {
	case <-p.ended: // a little after the connection
	case <-time.After(quitLimit):
		return err
	case <-ctx.Done():
		return err
	case <-d.ctx.Done():
		return err
	}
	if said := words(dom.record().runtimeDir()); said != "" {
		return fmt.Errorf("qemu: %s", said)
	}
	return fmt.Errorf("qemu ended without a word: %w", err)
}
