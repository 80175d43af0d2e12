package blockd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/image"
	"hayloft/internal/undo"
	"hayloft/internal/waiting"
)

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func checkExport(e Export) error {
	fail := func(format string, args ...any) error {
		return fault.Errorf(fault.Invalid, "export "+e.Name+": "+format, args...)
	}
	if err := image.CheckName(e.Name); err != nil {
		return fault.Errorf(fault.Invalid, "export %q: %w", e.Name, err)
	}
	switch {
	case e.Kind != NBD && e.Kind != FUSE && e.Kind != Loop:
		return fail("kind %q is none of nbd, fuse, loop", e.Kind)
	case !filepath.IsAbs(e.Path):
		return fail("path %q is not absolute", e.Path)
	case !oneOf(e.Base != nil, e.Volume != nil, e.Direct != nil):
		return fail("needs a base, a volume or an image of its own, and one of these")
	case e.Kind == NBD && len(e.Path) > maxSocketPath:
		return fail("path %s has %d bytes, a unix socket's has %d at most", e.Path, len(e.Path), maxSocketPath)
	}
	if e.Base != nil {
		_, err := checkBase(*e.Base)
		return err
	}
	if e.Direct != nil {
		return checkDirect(e.Name, *e.Direct)
	}
	return checkVolume(e.Name, *e.Volume)
}

func oneOf(all ...bool) bool {
	n := 0
	for _, yes := range all {
		if yes {
			n++
		}
	}
	return n == 1
}

// Export implements Service.
func (d *Daemon) Export(ctx context.Context, e Export) error {
	if err := checkExport(e); err != nil {
		return err
	}
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	give, err := d.turns.take(ctx, e.Name)
	if err != nil {
		return err
	}
	defer give()
	if x := d.exported(e.Name); x != nil && x.hasEnded() { // in vain, the first time
		if err := x.shut(); err != nil {
			return fmt.Errorf("export %s: the former one: %w", e.Name, err)
		}
		d.drop(x)
	} else if x != nil {
		if sameJSON(x.record.Export, e) {
			return x.reachable(ctx)
		}
		return fault.Errorf(fault.Exists, "export %s: exists, and is another", e.Name)
	}
	presenter, err := d.presenter(e)
	if err != nil {
		return err
	}
	ctx, done := waiting.On(ctx, "export %s", e.Name)
	defer done()
	x := newExported(d, exportRecord{Export: e})
	d.inMaking(x, true)
	defer d.inMaking(x, false)
	if err := x.create(ctx, presenter); err != nil {
		return fmt.Errorf("export %s: %w", e.Name, err)
	}
	d.config.Log.Info("exported", "export", e.Name, "kind", e.Kind, "path", e.Path)
	return nil
}

func (d *Daemon) presenter(e Export) (Presenter, error) {
	if p := d.config.Present[e.Kind]; p != nil {
		return p, nil
	}
	return nil, fault.Errorf(fault.Unsupported, "export %s: this host exports nothing by %s", e.Name, e.Kind)
}

// inMaking lists an export that is being made, or does not any more.
func (d *Daemon) inMaking(x *exported, yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if yes {
		d.making[x.record.Export.Name] = x
	} else {
		delete(d.making, x.record.Export.Name)
	}
}

func (d *Daemon) exported(name string) *exported {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.exports[name]
}

// create opens the device, remembers it, and makes it reachable; all of it or nothing.
func (x *exported) create(ctx context.Context, presenter Presenter) error {
	d := x.daemon
	var back undo.Stack
	fail := func(err error) error {
		if undone := back.Run(); undone != nil {
			d.config.Log.Error("export not taken back", "export", x.record.Export.Name, "error", undone)
		}
		if x.isOpen() { // nobody may open it again before it is closed
			x.mu.Lock()
			x.ended = true
			x.mu.Unlock()
			d.mu.Lock()
			d.exports[x.record.Export.Name] = x
			d.mu.Unlock()
		}
		return err
	}
	if err := x.openFirst(ctx, &back); err != nil {
		return fail(err)
	}
	if err := x.keep(); err != nil {
		return fail(err)
	}
	back.Push(x.forget)
	p, err := presenter.Present(x.record.Export, x.door)
	if err != nil {
		return fail(err)
	}
	back.Push(p.Close)
	x.mu.Lock()
	x.reach(p)
	x.mu.Unlock()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return fail(errEnding)
	}
	d.exports[x.record.Export.Name] = x
	d.mu.Unlock()
	back.Keep()
	return nil
}

// Unexport implements Service.
func (d *Daemon) Unexport(ctx context.Context, name string) error {
	return d.end(ctx, name, func(_ context.Context, x *exported) error { return x.shut() })
}

// end takes an export away: how ends the device, then it is forgotten.
func (d *Daemon) end(ctx context.Context, name string, how func(context.Context, *exported) error) error {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	give, err := d.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer give()
	x := d.exported(name)
	if x == nil {
		return nil
	}
	if err := how(ctx, x); err != nil {
		return fmt.Errorf("export %s: %w", name, err)
	}
	if err := d.exportsKept.remove(name); err != nil {
		return fmt.Errorf("export %s: %w", name, err)
	}
	d.drop(x)
	d.config.Log.Info("export ended", "export", name)
	return nil
}

func (d *Daemon) drop(x *exported) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.exports, x.record.Export.Name)
}

// Settle implements Service. Requests and Unexport of the same name go on meanwhile.
func (d *Daemon) Settle(ctx context.Context, name string, report func(done, total int64)) error {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := d.revive(ctx, name); err != nil {
		return err
	}
	x := d.exported(name)
	if x == nil {
		return fault.Errorf(fault.NotFound, "export %s: there is none", name)
	}
	volume, use, err := x.useVolume(ctx)
	if err == nil && volume != nil {
		err = volume.Settle(use.ctx, report)
		use.done()
	}
	if err != nil {
		return fmt.Errorf("export %s: %w", name, err)
	}
	return nil
}

// Discard implements Service.
func (d *Daemon) Discard(ctx context.Context, name string) error {
	return d.end(ctx, name, func(ctx context.Context, x *exported) error { return x.discard(ctx) })
}

// revive has an export go on that was to be ended, in vain: nothing could be done about what it has not drained.
func (d *Daemon) revive(ctx context.Context, name string) error {
	if x := d.exported(name); x == nil || !x.hasEnded() {
		return nil
	}
	give, err := d.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer give()
	x := d.exported(name)
	if x == nil || !x.hasEnded() {
		return nil
	}
	if err := x.again(); err != nil {
		return fmt.Errorf("export %s: is not ended: %w", name, err)
	}
	return nil
}

// Status implements Service. Exports that are being made are listed too: how much of an image is loaded.
func (d *Daemon) Status(ctx context.Context) (Status, error) {
	s := Status{Version: d.config.Version, PID: pid(), Bases: []BaseState{}, Exports: []ExportStatus{}}
	d.mu.Lock()
	all := maps.Clone(d.making)
	maps.Copy(all, d.exports)
	exports, bases := sorted(all), sorted(d.bases)
	d.mu.Unlock()
	for _, x := range exports {
		s.Exports = append(s.Exports, x.status())
	}
	for _, b := range bases {
		if status, ok := b.status(); ok {
			s.Bases = append(s.Bases, BaseState{Digest: b.spec().Image.Digest, Status: status})
		}
	}
	return s, ctx.Err()
}

func (b *based) status() (cache.BaseStatus, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.base != nil {
		return b.base.Status(), true
	}
	return b.last, b.seen
}
