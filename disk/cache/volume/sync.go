package volume

import (
	"context"
	"errors"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/repository"
)

// Flush implements export.Device.
func (v *volume) Flush(ctx context.Context) error {
	return v.do("flush", 0, 1, func() error {
		switch v.mode {
		case cache.Offline:
			return v.offline.flush(ctx)
		case cache.Back:
			return v.back.flush(ctx)
		}
		return v.syncThrough(ctx)
	})
}

// syncThrough has the source sync what AROUND and THRU wrote to it.
func (v *volume) syncThrough(ctx context.Context) error {
	told := v.toldSyncs.Load() // what another flush tells meanwhile concerns this one as well
	return v.apart(ctx, change{}, func(ctx context.Context, _ change) error {
		err := v.patientSync(ctx)
		if v.tellLosses(told) && err == nil {
			err = errLostSync
		}
		if err != nil {
			return err
		}
		// A change from another mode that a crash undid may have left the mark.
		return v.patient(ctx, func() error { return v.remote.Undrained(ctx, false) })
	})
}

// durably changes the source and syncs it. A sync that fails is told once, maybe to somebody else who asked for one
// meanwhile: what was changed before may be lost all the same.
func (v *volume) durably(ctx context.Context, sync func(context.Context) error, change func() error) error {
	before := v.lostSyncs.Load()
	if err := change(); err != nil {
		return err
	}
	if err := sync(ctx); err != nil {
		return err
	}
	if v.lostSyncs.Load() != before {
		return errLostSync
	}
	return nil
}

var errLostSync = fault.Errorf(fault.Unavailable, "the source may have lost what it had not synced")

// tellLosses reports whether syncs failed, also in the process before, that no flush had told of when this one began, with so many
// told: it does now. Whoever had asked for them, what was written before them is not durable.
func (v *volume) tellLosses(told uint64) bool {
	lost := v.lostSyncs.Load()
	if lost == told {
		return false
	}
	for now := v.toldSyncs.Load(); now < lost && !v.toldSyncs.CompareAndSwap(now, lost); now = v.toldSyncs.Load() {
	}
	v.stateMu.Lock()
	remembered := v.state.Lost
	v.stateMu.Unlock()
	if remembered {
		v.local(v.changeState(func(s *state) { s.Lost = false }))
	}
	return true
}

// syncSource makes durable what the source has; many share one sync. Bits of chunks that were changed since the last
// one go on file only now: until then the source may lose what they hold. It is not done again after an error: what
// the source lost, a second sync does not bring back. The cache drops it too, so that reads now and later agree.
func (v *volume) syncSource(context.Context) error {
	return v.sourceSyncs.do(func() error {
		v.present.beginSync()
		err := v.remote.sync()
		var notBegun *repository.NotBegun
		if errors.As(err, &notBegun) {
			return err
		}
		if err == nil {
			if err := v.present.endSync(); err != nil {
				v.local(err)
				return v.loseMap()
			}
			return nil
		}
		v.lostSyncs.Add(1)
		for c := range v.present.doubtful() {
			if err := v.forget(v.life, c, c+1); err != nil {
				return err
			}
		}
		return err
	})
}

// patientSync waits for a source that cannot be reached, as long as it was not even asked.
func (v *volume) patientSync(ctx context.Context) error {
	var failed error
	_ = v.patient(ctx, func() error {
		failed = v.syncSource(ctx)
		if notBegun := (*repository.NotBegun)(nil); !errors.As(failed, &notBegun) {
			return nil
		}
		return failed
	})
	return failed
}

// baselinePatience is for how long Open and Close wait for the source to sync what machines wrote before.
const baselinePatience = 10 * time.Second

// baseline makes durable in the source what was written before now: an error would not be told to those who wrote
// it. When the source does not do that, what is read of it is not believed after the next Open. An error, also one that
// comes late, is the next flush's.
func (v *volume) baseline(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, baselinePatience)
	defer cancel()
	err := v.apart(ctx, change{}, func(ctx context.Context, _ change) error { return v.syncSource(ctx) })
	if err != nil {
		v.log.Warn("source did not sync what was written before", "volume", v.name, "error", err)
	}
}
