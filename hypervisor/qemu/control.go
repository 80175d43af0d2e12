package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/turn"
	"hayloft/hypervisor/qemu/qmp"
)

// Shutdown presses the guest's power button. It may be called again for a guest that did not listen.
func (d *Driver) Shutdown(ctx context.Context, id int) error {
	ctx, dom, done, err := d.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	dom.mu.Lock()
	if dom.rec.Reboot {
		err = d.change(dom, func(r *record) { r.Reboot = false })
	}
	dom.mu.Unlock()
	if err != nil {
		return err
	}
	return d.unlessEnded(ctx, dom, d.command(ctx, dom, "system_powerdown"), nil)
}

// Reboot resets the guest when hard. Otherwise it presses the power button, and starts the guest again when
// it has gone off; a guest that reboots instead is as good. The process stays.
func (d *Driver) Reboot(ctx context.Context, id int, hard bool) error {
	ctx, dom, done, err := d.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	gone := fault.Errorf(fault.WrongState, "domain %d does not run", id)
	if hard {
		return d.unlessEnded(ctx, dom, d.command(ctx, dom, "system_reset"), gone)
	}
	dom.mu.Lock()
	if dom.proc == nil || dom.rec.Ending.Status != "" {
		err = gone
	} else {
		err = d.change(dom, func(r *record) { r.Reboot = true })
	}
	dom.mu.Unlock()
	if err != nil {
		return err
	}
	return d.unlessEnded(ctx, dom, d.command(ctx, dom, "system_powerdown"), gone)
}

func (d *Driver) command(ctx context.Context, dom *domain, name string) error {
	client, err := d.client(ctx, dom)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if err := client.Execute(ctx, name, nil, nil); err != nil {
		return fmt.Errorf("domain %d: %w", dom.id, err)
	}
	return nil
}

// unlessEnded is err, or instead when the reason of it is that the machine does not run any more.
func (d *Driver) unlessEnded(ctx context.Context, dom *domain, err, instead error) error {
	if err == nil {
		return nil
	}
	if fault.Is(err, fault.WrongState) {
		return instead
	}
	if p := dom.process(); p != nil {
		patience := time.Second
		if broken(err) { // the first sign of a process that ends
			patience = quitLimit
		}
		select {
		case <-p.ended:
			return instead
		case <-ctx.Done():
			return interrupted(ctx, err)
		case <-d.ctx.Done():
			return err
		case <-time.After(patience):
			return err
		}
	}
	return instead
}

// broken says that err comes from a connection that QEMU has ended, or from one that it did not take.
func broken(err error) bool {
	for _, sign := range []error{qmp.ErrClosed, io.EOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, sign) {
			return true
		}
	}
	return false
}

// interrupted is err, or the interruption that caused it.
func interrupted(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, turn.ErrInterrupted) {
		return fault.Errorf(fault.Busy, "%w: %w", cause, err)
	}
	return err
}

// Kill implements hypervisor.Driver.
func (d *Driver) Kill(ctx context.Context, id int) error {
	ctx, done, err := d.turns.Interrupt(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	defer done()
	dom, err := d.known(id)
	if err != nil {
		return err
	}
	return d.kill(ctx, dom, outcome{hypervisor.Off, "killed on request"})
}

// kill ends the domain's process, if there is one, and waits until it is gone.
func (d *Driver) kill(ctx context.Context, dom *domain, o outcome) error {
	p := dom.process()
	if p == nil {
		return nil
	}
	if err := d.decide(dom, o); err != nil {
		return err
	}
	if err := errors.Join(p.kill(), d.killGroup(dom.id)); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-d.ctx.Done():
		return fmt.Errorf("domain %d: driver closed", dom.id)
	case <-ctx.Done():
		return fmt.Errorf("domain %d: process %d was killed but is not gone: %w", dom.id, p.pid, ctx.Err())
	}
}

// Remove implements hypervisor.Driver.
func (d *Driver) Remove(ctx context.Context, id int) error {
	ctx, done, err := d.turns.Interrupt(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	defer done()
	dom := d.find(id)
	if dom == nil {
		return nil
	}
	// If we die half-way, whoever finds it must not take it for a machine that was switched off.
	if err := d.kill(ctx, dom, outcome{hypervisor.Crashed, "removed"}); err != nil {
		return err
	}
	d.removeGroup(id) // where it was not to be had when the process ended
	if err := os.RemoveAll(dom.record().runtimeDir()); err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	if err := d.forget(id); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.domains, id)
	d.mu.Unlock()
	d.log.Info("domain removed", "domain", id)
	d.events.Add(id)
	return nil
}
