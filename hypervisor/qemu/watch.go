package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
)

const (
	dialLimit    = 5 * time.Second  // for an adopted QEMU to greet, before the others' turn comes and it is tried again later
	commandLimit = 30 * time.Second // for a command the driver gives by itself
	quitLimit    = 30 * time.Second // for QEMU to close its disks, before it is killed; and then to be gone
	groupLimit   = 10 * time.Second // for what is killed to leave its control group
)

// hold makes p the domain's process and watches it until it ends or the driver closes. Caller holds dom.mu.
func (d *Driver) hold(dom *domain, p *process) {
	dom.proc, dom.stopped, dom.ioTrouble, dom.resetting = p, false, false, false
	d.wg.Go(func() {
		defer p.fd.Close()
		if how, ended := p.wait(); ended {
			d.finish(dom, p, how)
		}
	})
}

// finish takes note of the end of the domain's process.
func (d *Driver) finish(dom *domain, p *process, how string) {
	defer close(p.ended)
	d.removeGroup(dom.id)
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.monitor != nil {
		dom.monitor.Close()
		dom.monitor = nil
	}
	if dom.console != nil {
		dom.console.close()
		dom.console = nil
	}
	dom.proc = nil
	if dom.rec.Phase != running {
		return // Start is under way and cleans up
	}
	o := dom.rec.Ending
	if o.Status == "" {
		o = outcome{hypervisor.Crashed, joinReason(how, words(dom.rec.runtimeDir()))}
	}
	d.conclude(dom, o)
}

// conclude records the outcome of a domain whose process is gone. Caller holds dom.mu.
func (d *Driver) conclude(dom *domain, o outcome) {
	id, partial := dom.id, dom.rec.Saving
	fn := func(r *record) {
		r.Phase, r.Outcome, r.Ending, r.Reboot, r.PID, r.Saving = ended, o, outcome{}, false, 0, ""
	}
	if err := d.change(dom, fn); err != nil {
		d.log.Error("domain ended, but its record could not be stored", "domain", id, "err", err)
		fn(&dom.rec)
	}
	if partial != "" {
		if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn("incomplete saved state could not be removed", "domain", id, "err", err)
		}
	}
	d.log.Info("domain ended", "domain", id, "status", o.Status, "reason", o.Reason)
	d.events.Add(id)
}

func joinReason(how, words string) string {
	if words == "" {
		return how
	}
	return how + ": " + words
}

// attach makes client the domain's monitor and follows its events until it ends.
func (d *Driver) attach(dom *domain, p *process, client *qmp.Client) {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.proc != p || d.ctx.Err() != nil {
		client.Close()
		return
	}
	dom.monitor = client
	d.wg.Go(func() {
		defer client.Close()
		for {
			e, err := client.Next(d.ctx)
			if err != nil {
				return
			}
			if err := d.handle(dom, p, client, e); err != nil && !errors.Is(err, qmp.ErrClosed) && d.ctx.Err() == nil {
				d.log.Warn("domain event not handled", "domain", dom.id, "event", e.Name, "err", err)
			}
		}
	})
}

func (d *Driver) handle(dom *domain, p *process, client *qmp.Client, e qmp.Event) error {
	var data struct{ Reason, Status, Action string }
	if e.Data != nil {
		if err := json.Unmarshal(e.Data, &data); err != nil {
			return fmt.Errorf("event %s: %w", e.Name, err)
		}
	}
	ctx, cancel := context.WithTimeout(d.ctx, commandLimit)
	defer cancel()
	switch e.Name {
	case "STOP", "RESUME":
		dom.mu.Lock()
		dom.stopped = e.Name == "STOP"
		dom.ioTrouble = dom.ioTrouble && dom.stopped
		dom.mu.Unlock()
		d.events.Add(dom.id)
	case "BLOCK_IO_ERROR":
		dom.mu.Lock()
		dom.ioTrouble = data.Action == "stop"
		dom.mu.Unlock()
	case "SHUTDOWN":
		if data.Reason == "guest-shutdown" {
			dom.acting.Lock()
			defer dom.acting.Unlock()
			return d.guestOff(ctx, dom, p, client)
		}
	case "GUEST_PANICKED":
		return d.end(ctx, dom, p, client, outcome{hypervisor.Crashed, "the guest panicked"})
	case "RESET":
		dom.acting.Lock()
		defer dom.acting.Unlock()
		return d.guestReset(ctx, dom, client)
	case "MIGRATION":
		select {
		case <-dom.migration: // an older one that nobody wanted
		default:
		}
		select {
		case dom.migration <- data.Status:
		default:
		}
	case qmp.EventsLost:
		return d.look(ctx, dom, p, client)
	}
	return nil
}

// guestOff ends the domain of a guest that has powered off, or, in a soft reboot, starts the guest again. Caller holds dom.acting.
func (d *Driver) guestOff(ctx context.Context, dom *domain, p *process, client *qmp.Client) error {
	dom.mu.Lock()
	again := dom.rec.Reboot && dom.rec.Ending.Status == ""
	dom.resetting = again
	dom.mu.Unlock()
	if again {
		return client.Execute(ctx, "system_reset", nil, nil)
	}
	return d.end(ctx, dom, p, client, outcome{hypervisor.Off, "the guest powered off"})
}

// guestReset follows a reset, ours or the guest's own: a soft reboot is done. Caller holds dom.acting.
func (d *Driver) guestReset(ctx context.Context, dom *domain, client *qmp.Client) error {
	dom.mu.Lock()
	resume := dom.resetting
	dom.resetting = false
	var err error
	if dom.rec.Reboot && !resume {
		err = d.change(dom, func(r *record) { r.Reboot = false })
	}
	dom.mu.Unlock()
	if !resume {
		return err
	}
	if err := client.Execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	dom.mu.Lock()
	defer dom.mu.Unlock()
	dom.stopped = false
	return d.change(dom, func(r *record) { r.Reboot = false })
}

// end records the outcome, lets QEMU close its disks and exit, and waits until it is gone; one that does not exit is killed.
func (d *Driver) end(ctx context.Context, dom *domain, p *process, client *qmp.Client, o outcome) error {
	if err := d.decide(dom, o); err != nil {
		return err
	}
	quit, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	_ = client.Execute(quit, "quit", nil, nil) // the answer may be cut off by the end it asks for
	select {
	case <-p.ended:
		return nil
	case <-d.ctx.Done():
		return nil
	case <-quit.Done():
	}
	if err := p.kill(); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-d.ctx.Done():
		return nil
	case <-time.After(quitLimit):
		return fmt.Errorf("process %d was killed but is not gone", p.pid)
	}
}

// look asks for the guest's state and acts as its events would have made us.
func (d *Driver) look(ctx context.Context, dom *domain, p *process, client *qmp.Client) error {
	// Held from the question on: what QEMU answered would be old once the event of the same end or reset was handled.
	dom.acting.Lock()
	defer dom.acting.Unlock()
	var state struct{ Status string }
	if err := client.Execute(ctx, "query-status", nil, &state); err != nil {
		return err
	}
	dom.mu.Lock()
	dom.stopped = state.Status != "running"
	dom.ioTrouble = state.Status == "io-error"
	rebooting := dom.rec.Reboot
	dom.mu.Unlock()
	switch state.Status {
	case "shutdown":
		return d.guestOff(ctx, dom, p, client)
	case "guest-panicked":
		return d.end(ctx, dom, p, client, outcome{hypervisor.Crashed, "the guest panicked"})
	case "internal-error":
		return d.end(ctx, dom, p, client, outcome{hypervisor.Crashed, "QEMU internal error: " + words(dom.record().runtimeDir())})
	case "prelaunch":
		if rebooting {
			dom.mu.Lock()
			dom.resetting = true
			dom.mu.Unlock()
			return d.guestReset(ctx, dom, client)
		}
	}
	return nil
}
