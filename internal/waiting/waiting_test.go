package waiting

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, w := New(t.Context())
		check := func(want string, for_ time.Duration) {
			t.Helper()
			if what, lapse := w.Longest(); what != want || lapse != for_ {
				t.Errorf("%q for %v, want %q for %v", what, lapse, want, for_)
			}
		}
		check("", 0)
		disk, doneDisk := On(ctx, "disk %d", 1)
		time.Sleep(time.Minute)
		check("disk 1", time.Minute)
		lock, doneLock := On(disk, "the lock of %s", "data")
		time.Sleep(time.Second)
		check("disk 1: the lock of data", time.Minute+time.Second)
		_, doneOther := On(disk, "a session")
		time.Sleep(time.Second)
		check("disk 1: the lock of data", time.Minute+2*time.Second) // the older of two
		doneLock()
		doneLock()
		check("disk 1: a session", time.Minute+2*time.Second)
		doneOther()
		check("disk 1", time.Minute+2*time.Second)
		Elsewhere(disk, "a connection")
		check("disk 1: a connection", time.Minute+2*time.Second)
		time.Sleep(believed)
		check("disk 1", time.Minute+2*time.Second+believed)
		doneDisk()
		check("", 0)
		Elsewhere(lock, "too late")
		_, done := On(Like(context.Background(), disk), "late")
		check("disk 1: late", time.Minute+2*time.Second+believed)
		done()
		_, done = On(context.Background(), "unwatched")
		done()
		check("", 0)
	})
}

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, w := New(t.Context())
		var said []time.Duration
		end := w.Every(10*time.Second, func(_ string, lapse time.Duration) { said = append(said, lapse) })
		_, done := On(ctx, "short")
		time.Sleep(9 * time.Second)
		done()
		_, done = On(ctx, "long")
		time.Sleep(25 * time.Second)
		done()
		time.Sleep(time.Minute)
		end()
		if len(said) != 3 || said[0] != 11*time.Second || said[1] != 21*time.Second || said[2] != 0 {
			t.Errorf("said after %v", said)
		}
	})
}
