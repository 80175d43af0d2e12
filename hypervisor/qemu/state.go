package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
	"hayloft/internal/durable"
	"hayloft/internal/undo"
)

// A saved machine is one file: a header of headerSize bytes, then QEMU's migration stream. The header starts
// with stateMagic, then JSON, then zeroes.
const (
	stateMagic = "hayloft-qemu-state-1\n"
	headerSize = 4096
)

// savedHeader says what a host must have to continue the machine.
type savedHeader struct {
	Platform platform
	QEMU     string // version that wrote it
}

func (h savedHeader) encode() ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	out := make([]byte, headerSize)
	if copy(out, stateMagic)+copy(out[len(stateMagic):], text) == headerSize {
		return nil, errors.New("header is too long")
	}
	return out, nil
}

func decodeHeader(header []byte) (savedHeader, error) {
	var h savedHeader
	text, ok := bytes.CutPrefix(header, []byte(stateMagic))
	if !ok {
		return h, errors.New("not a saved machine")
	}
	if err := json.Unmarshal(bytes.TrimRight(text, "\x00"), &h); err != nil {
		return h, fmt.Errorf("header: %w", err)
	}
	return h, nil
}

// openState opens a saved machine; the file is positioned at the migration stream.
func openState(path string) (savedHeader, *os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return savedHeader{}, nil, fmt.Errorf("saved state: %w", err)
	}
	buffer := make([]byte, headerSize)
	if _, err = io.ReadFull(f, buffer); err == nil {
		var h savedHeader
		if h, err = decodeHeader(buffer); err == nil {
			return h, f, nil
		}
	}
	f.Close()
	return savedHeader{}, nil, fault.Errorf(fault.Corrupt, "saved state %s: %w", path, err)
}

// fitting returns the platform to continue on, where a new boot would have got here: the saved one, if this
// host and this machine's size allow it.
func (h savedHeader) fitting(here platform, version string) (platform, error) {
	p := h.Platform
	switch {
	case p.MemoryMB != here.MemoryMB || p.VCPU != here.VCPU:
		return p, invalid("saved state: has %d MB and %d CPUs, the machine has %d MB and %d", p.MemoryMB, p.VCPU, here.MemoryMB, here.VCPU)
	case p.Accelerator != here.Accelerator:
		return p, invalid("saved state: was saved under %s, this host has %s", p.Accelerator, here.Accelerator)
	case chipsetOf(p.Machine) != chipsetOf(here.Machine):
		return p, invalid("saved state: chipset is %s, the machine's is %s", chipsetOf(p.Machine), chipsetOf(here.Machine))
	case chipsetOf(p.Machine) == "microvm" && h.QEMU != version:
		return p, invalid("saved state: a microvm saved by %s, this host has %s, and microvm has no versions", h.QEMU, version)
	}
	return p, nil
}

// load lets QEMU, started with -incoming defer, read the migration stream.
func (d *Driver) load(ctx context.Context, dom *domain, client *qmp.Client, f *os.File) error {
	if err := reportMigration(ctx, client); err != nil {
		return err
	}
	if err := client.SendFile(ctx, "state", f); err != nil {
		return err
	}
	if err := client.Execute(ctx, "migrate-incoming", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return dom.awaitMigration(ctx, client)
}

func reportMigration(ctx context.Context, client *qmp.Client) error {
	capability := []map[string]any{{"capability": "events", "state": true}}
	return client.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capability}, nil)
}

// awaitMigration returns when a migration, in or out, has completed.
func (dom *domain) awaitMigration(ctx context.Context, client *qmp.Client) error {
	for {
		select {
		case status := <-dom.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				var info struct {
					Description string `json:"error-desc"`
				}
				err := client.Execute(ctx, "query-migrate", nil, &info)
				return errors.Join(fmt.Errorf("migration %s: %s", status, info.Description), err)
			}
		case <-client.Done():
			return client.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Save implements hypervisor.Driver.
func (d *Driver) Save(ctx context.Context, id int, path string) error {
	ctx, dom, done, err := d.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if !filepath.IsAbs(path) {
		return invalid("domain %d: saved state %q: not an absolute path", id, path)
	}
	client, err := d.client(ctx, dom)
	if err != nil {
		return err
	}
	if err := d.save(ctx, dom, client, path); err != nil {
		gone := fault.Errorf(fault.WrongState, "domain %d ended while it was saved", id)
		return d.unlessEnded(ctx, dom, interrupted(ctx, fmt.Errorf("domain %d: save to %s: %w", id, path, err)), gone)
	}
	return nil
}

func (d *Driver) save(ctx context.Context, dom *domain, client *qmp.Client, path string) error {
	var made undo.Stack
	defer made.Run()
	p, err := d.claim(dom, path)
	if err != nil {
		return err
	}
	made.Push(func() error { return d.recordSaving(dom, "") })
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	made.Push(func() error { return os.Remove(path) })
	rec := dom.record()
	header, err := savedHeader{rec.Platform, "QEMU " + client.Version().String()}.encode()
	if err != nil {
		return err
	}
	if _, err := f.Write(header); err != nil {
		return err
	}
	made.Push(func() error { return d.goOn(dom, client) })
	if err := writeState(ctx, dom, client, f); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), durable.SyncDir(filepath.Dir(path))); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// The outcome and the completeness of the file are recorded in one write.
	dom.mu.Lock()
	err = d.change(dom, func(r *record) { r.Ending, r.Saving = outcome{hypervisor.Off, "saved"}, "" })
	dom.mu.Unlock()
	if err != nil {
		return err
	}
	made.Keep()
	quit, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandLimit)
	defer cancel()
	return d.end(quit, dom, p, client, outcome{hypervisor.Off, "saved"})
}

// claim records the file a Save is going to write, unless the domain's end is already decided.
func (d *Driver) claim(dom *domain, path string) (*process, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fault.Errorf(fault.Exists, "file exists")
	}
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.proc == nil || dom.rec.Ending.Status != "" {
		return nil, fault.Errorf(fault.WrongState, "does not run")
	}
	return dom.proc, d.change(dom, func(r *record) { r.Saving = path })
}

func (d *Driver) recordSaving(dom *domain, path string) error {
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.rec.Phase != running {
		return nil
	}
	return d.change(dom, func(r *record) { r.Saving = path })
}

// writeState stops the guest, which also flushes its disks, and writes its memory to f.
func writeState(ctx context.Context, dom *domain, client *qmp.Client, f *os.File) error {
	if err := client.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := reportMigration(ctx, client); err != nil {
		return err
	}
	unlimited := map[string]any{"max-bandwidth": int64(1) << 40}
	if err := client.Execute(ctx, "migrate-set-parameters", unlimited, nil); err != nil {
		return err
	}
	if err := client.SendFile(ctx, "state", f); err != nil {
		return err
	}
	select {
	case <-dom.migration: // of an earlier attempt
	default:
	}
	if err := client.Execute(ctx, "migrate", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	if err := dom.awaitMigration(ctx, client); err != nil {
		return err
	}
	var info struct {
		Status string
		RAM    struct{ Total int64 }
	}
	if err := client.Execute(ctx, "query-migrate", nil, &info); err != nil {
		return err
	}
	if info.Status != "completed" {
		return errors.New("migration is " + strconv.Quote(info.Status))
	}
	return nil
}

// goOn lets the guest run again after a Save that failed. The context of that Save may have ended.
func (d *Driver) goOn(dom *domain, client *qmp.Client) error {
	ctx, cancel := context.WithTimeout(d.ctx, commandLimit)
	defer cancel()
	var info struct{ Status string }
	if err := client.Execute(ctx, "query-migrate", nil, &info); err != nil {
		return err
	}
	if info.Status == "setup" || info.Status == "active" || info.Status == "cancelling" || info.Status == "device" {
		if err := client.Execute(ctx, "migrate_cancel", nil, nil); err != nil {
			return err
		}
		_ = dom.awaitMigration(ctx, client) // "cancelled", or completed before that
	}
	if err := awaitFinished(ctx, client); err != nil {
		return err
	}
	if err := client.Execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	d.events.Add(dom.id)
	return nil
}

// awaitFinished waits until QEMU has left its last phase of a migration, in which it continues no guest: that is a little after it
// has said how the migration ended.
func awaitFinished(ctx context.Context, client *qmp.Client) error {
	for {
		var state struct{ Status string }
		if err := client.Execute(ctx, "query-status", nil, &state); err != nil || state.Status != "finish-migrate" {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
