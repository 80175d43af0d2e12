package blockd

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// slowImage is an image in memory; changes of it wait for their turn where there is one.
type slowImage struct {
	bytes []byte
	begun chan struct{} // told of each change
	goOn  chan struct{} // nil: at once
	data  [2]int64      // what NextData says
}

func (m *slowImage) Size() int64 { return int64(len(m.bytes)) }
func (m *slowImage) ReadAt(p []byte, offset int64) (int, error) {
	return copy(p, m.bytes[offset:]), nil
}
func (m *slowImage) Truncate(int64) error { return nil }
func (m *slowImage) Sync() error          { return nil }
func (m *slowImage) Close() error         { return nil }
func (m *slowImage) Discard(offset, length int64) error {
	_, err := m.WriteAt(make([]byte, length), offset)
	return err
}

func (m *slowImage) WriteAt(p []byte, offset int64) (int, error) {
	m.begun <- struct{}{}
	if m.goOn != nil {
		<-m.goOn
	}
	return copy(m.bytes[offset:], p), nil
}

func (m *slowImage) NextData(int64) (start, end int64, err error) { return m.data[0], m.data[1], nil }

func directOn(t *testing.T, m *slowImage) *direct {
	return newDirect(t.Context(), m, m, m.Size(), time.Minute)
}

// TestDirectWritesInOrder: a write that hangs, and that nobody waits for any more, does not come after one that was asked for
// later.
func TestDirectWritesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &slowImage{bytes: make([]byte, 4096), begun: make(chan struct{}, 9), goOn: make(chan struct{})}
		d := directOn(t, m)
		ctx, cancel := context.WithCancel(t.Context())
		former, given := make(chan error, 1), make(chan error, 1)
		go func() { former <- d.WriteAt(ctx, bytes.Repeat([]byte{1}, 1000), 0, false) }()
		<-m.begun
		go func() { given <- d.WriteAt(ctx, bytes.Repeat([]byte{2}, 1000), 500, false) }()
		synctest.Wait()
		cancel()
		<-former
		<-given
		later := make(chan error, 1)
		go func() { later <- d.Zero(t.Context(), 200, 1000, export.ZeroFlags{}) }()
		synctest.Wait()
		select {
		case <-m.begun:
			t.Fatal("it overtook one that hangs")
		default:
		}
		close(m.goOn)
		must(t, <-later)
		want := make([]byte, 4096)
		copy(want, bytes.Repeat([]byte{1}, 200)) // the second never began
		if !bytes.Equal(m.bytes, want) {
			t.Error("an older write came last")
		}
		must(t, d.Close())
		class(t, "write after the end", d.WriteAt(t.Context(), want, 0, false), fault.Unavailable)
	})
}

// TestDirectClose: what still hangs then would meet the image of the next owner.
func TestDirectClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &slowImage{bytes: make([]byte, 4096), begun: make(chan struct{}, 9), goOn: make(chan struct{})}
		d := directOn(t, m)
		answered := make(chan error, 1)
		go func() { answered <- d.WriteAt(t.Context(), make([]byte, 100), 0, false) }()
		<-m.begun
		for range 2 {
			class(t, "close", d.Close(), fault.Unavailable)
		}
		class(t, "write", <-answered, fault.Unavailable)
		close(m.goOn)
		must(t, d.Close())
	})
}

// TestDirectExtentsOfALiar: a repository that says nonsense about its holes is told, not asked for ever.
func TestDirectExtentsOfALiar(t *testing.T) {
	for _, data := range [][2]int64{{0, 0}, {1000, 500}, {-5, 10}} {
		d := directOn(t, &slowImage{bytes: make([]byte, 4096), data: data})
		class(t, "extents", d.Extents(t.Context(), 0, 4096, func(export.Extent) bool { return true }), fault.Corrupt)
		must(t, d.Close())
	}
}
