package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
)

// adoptAll takes over every recorded domain, several at a time.
func (d *Driver) adoptAll() error {
	paths, err := filepath.Glob(filepath.Join(d.config.StateDir, "qemu-[0-9]*.json"))
	if err != nil {
		return fmt.Errorf("qemu driver: %w", err)
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	room := make(chan struct{}, 8)
	var records []record
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("qemu driver: %w", err)
		}
		var r record
		if err := json.Unmarshal(text, &r); err != nil || d.recordPath(r.ID) != path {
			return fmt.Errorf("qemu driver: record %s is damaged: %w", path, err)
		}
		records = append(records, r)
	}
	for _, r := range records {
		dom := newDomain(r)
		d.mu.Lock()
		d.domains[r.ID] = dom
		d.mu.Unlock()
		room <- struct{}{}
		group.Go(func() {
			defer func() { <-room }()
			if err := d.adopt(dom); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("adopt domain %d: %w", r.ID, err))
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// adopt finds the domain's process, or notes that it is gone.
func (d *Driver) adopt(dom *domain) error {
	r := dom.rec
	if r.Phase == ended {
		return nil
	}
	pid := r.PID
	if pid == 0 { // the driver died in the middle of a Start
		pid = findProcess(r.Nonce)
	}
	var p *process
	var err error
	if pid != 0 {
		if p, err = openProcess(pid, r.Nonce); err != nil {
			return err
		}
	}
	dom.mu.Lock()
	if p == nil && r.Phase == starting {
		dom.mu.Unlock()
		d.removeGroup(dom.id)
		d.reap(r.PID)
		return d.neverStarted(dom)
	}
	if p == nil {
		d.removeGroup(dom.id)
		o := r.Ending
		if o.Status == "" {
			o = outcome{hypervisor.Crashed, joinReason("the process is gone", words(r.runtimeDir()))}
		}
		d.reap(r.PID)
		d.conclude(dom, o)
		dom.mu.Unlock()
		return nil
	}
	if r.Phase == starting {
		dom.rec.Phase, dom.rec.Ending = running, outcome{hypervisor.Crashed, "the start was interrupted"}
	}
	interruptedStart, ending := r.Phase == starting, r.Ending.Status != ""
	d.hold(dom, p)
	dom.adopting = !interruptedStart && !ending
	dom.mu.Unlock()
	ctx, cancel := context.WithTimeout(d.ctx, commandLimit)
	defer cancel()
	if interruptedStart {
		if err := d.kill(ctx, dom, dom.record().Ending); err != nil {
			return err // listed as crashed when it is gone
		}
		return d.neverStarted(dom)
	}
	if ending {
		return d.kill(ctx, dom, r.Ending)
	}
	d.log.Info("domain adopted", "domain", dom.id, "pid", p.pid)
	if _, err := d.connect(ctx, dom, p, dialLimit); err != nil {
		// Its process lives, so it is a running domain; it is tried again, by operations too, which say what is wrong.
		d.log.Warn("adopted domain does not answer", "domain", dom.id, "err", err)
	}
	return nil
}

// neverStarted takes away what an interrupted Start left: its guest has run nothing, so that whoever asked for
// it may ask again, also with the same saved memory.
func (d *Driver) neverStarted(dom *domain) error {
	if err := os.RemoveAll(dom.record().runtimeDir()); err != nil {
		return err
	}
	if err := d.forget(dom.id); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.domains, dom.id)
	d.mu.Unlock()
	d.log.Info("interrupted start cleared away", "domain", dom.id)
	return nil
}

// reap takes away a child that ended while another driver of this process was closed.
func (d *Driver) reap(pid int) {
	if pid != 0 {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// connect makes a connection that was lost anew, within limit, and catches up with what happened meanwhile. The caller has the
// turn, or is alone.
func (d *Driver) connect(ctx context.Context, dom *domain, p *process, limit time.Duration) (*qmp.Client, error) {
	dom.mu.Lock()
	client, adopting := dom.monitor, dom.adopting
	dom.mu.Unlock()
	if client == nil || client.Err() != nil {
		dial, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		var err error
		if client, err = qmp.Dial(dial, dom.record().path(qmpSocket)); err != nil {
			return nil, err
		}
		d.attach(dom, p, client)
	}
	if !adopting {
		return client, d.look(ctx, dom, p, client)
	}
	if err := d.resume(ctx, dom, p, client); err != nil {
		return nil, err
	}
	dom.mu.Lock()
	dom.adopting = false
	dom.mu.Unlock()
	return client, nil
}

// resume finishes or takes back what the driver before us was doing with an adopted QEMU.
func (d *Driver) resume(ctx context.Context, dom *domain, p *process, client *qmp.Client) error {
	if partial := dom.record().Saving; partial != "" {
		if err := d.takeBackSave(dom, client, partial); err != nil {
			return err
		}
	}
	if err := clearSnapshots(ctx, client, dom.record()); err != nil {
		return err
	}
	if err := d.look(ctx, dom, p, client); err != nil {
		return err
	}
	dom.mu.Lock()
	still := dom.proc == p && dom.stopped && !dom.ioTrouble && dom.rec.Ending.Status == "" && !dom.rec.Reboot
	dom.mu.Unlock()
	if !still {
		return nil
	}
	// Frozen, or stopped between recording a start and letting it run: nobody but us would continue it.
	if err := client.Execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	return d.look(ctx, dom, p, client)
}

func (d *Driver) takeBackSave(dom *domain, client *qmp.Client, partial string) error {
	if err := d.goOn(dom, client); err != nil {
		return err
	}
	if err := os.Remove(partial); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.recordSaving(dom, "")
}

const (
	tendEvery      = 10 * time.Second
	consoleLogKeep = 1 << 20 // bytes of a console log that stay readable
)

// tend bounds the console logs, lets machines go on that wait for the host's storage, and connects again to those that nobody
// follows.
func (d *Driver) tend() {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		var domains []*domain
		for _, dom := range d.domains {
			domains = append(domains, dom)
		}
		d.mu.Unlock()
		for _, dom := range domains {
			if err := d.tendOne(dom); err != nil && d.ctx.Err() == nil {
				d.log.Warn("domain not tended", "domain", dom.id, "err", err)
			}
		}
	}
}

func (d *Driver) tendOne(dom *domain) error {
	dom.mu.Lock()
	r, client, waits := dom.rec, dom.monitor, dom.ioTrouble && dom.freezes == 0 && dom.rec.Saving == ""
	alive := dom.proc != nil
	revive := alive && r.Phase == running && dom.lost() && !dom.reviving
	dom.reviving = dom.reviving || revive
	dom.mu.Unlock()
	if revive {
		d.wg.Go(func() { d.revive(dom) })
	}
	if !alive {
		return nil
	}
	if waits && client != nil {
		ctx, cancel := context.WithTimeout(d.ctx, commandLimit)
		defer cancel()
		if err := client.Execute(ctx, "cont", nil, nil); err != nil {
			return err
		}
	}
	return bound(r.path(consoleLog), consoleLogKeep)
}

// revive connects to a domain's QEMU that did not answer when it was adopted, or that broke its connection. A guest that has gone
// off since would wait for its end for ever.
func (d *Driver) revive(dom *domain) {
	defer func() {
		dom.mu.Lock()
		dom.reviving = false
		dom.mu.Unlock()
	}()
	ctx, now, done, err := d.turn(d.ctx, dom.id)
	if err != nil {
		return // removed; or killed, and if it lives all the same it is tended again
	}
	defer done()
	if now != dom {
		return
	}
	if _, err := d.client(ctx, dom); err != nil && !fault.Is(err, fault.WrongState) && ctx.Err() == nil {
		d.log.Warn("domain does not answer", "domain", dom.id, "err", err)
	}
}

// bound gives back the disk space of all but about the last keep bytes of a log that another process appends
// to, without touching what that process sees. File systems that cannot punch holes lose the whole log instead.
func bound(path string, keep int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Blocks*512 <= 2*keep {
		return nil
	}
	hole := (st.Size - keep) &^ 4095
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, hole)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(0)
	}
	return err
}
