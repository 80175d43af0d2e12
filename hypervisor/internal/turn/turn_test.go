package turn

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneAtATimePerMachine(t *testing.T) {
	var table Table
	var group sync.WaitGroup
	var inside [3]int // one counter per machine: the race detector sees two at a time
	for i := range 100 {
		group.Go(func() {
			_, done, err := table.Take(t.Context(), i%3)
			if err != nil {
				t.Error(err)
				return
			}
			defer done()
			inside[i%3]++
		})
	}
	group.Wait()
	if inside != [3]int{34, 33, 33} {
		t.Errorf("turns %v, want 34, 33, 33", inside)
	}
	if len(table.lines) != 0 {
		t.Errorf("%d lines left", len(table.lines))
	}
}

func TestUrgentGoesNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table
		var order []string
		first, done, err := table.Take(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		group.Go(func() {
			if _, _, err := table.Take(t.Context(), 1); !errors.Is(err, ErrInterrupted) {
				t.Errorf("waiting operation: %v, want ErrInterrupted", err)
			}
		})
		synctest.Wait()
		group.Go(func() {
			_, done, err := table.Interrupt(t.Context(), 1)
			if err != nil {
				t.Error(err)
				return
			}
			order = append(order, "kill")
			done()
		})
		synctest.Wait()
		group.Go(func() {
			_, done, err := table.Take(t.Context(), 1)
			if err != nil {
				t.Error(err)
				return
			}
			order = append(order, "start")
			done()
		})
		synctest.Wait()
		if !errors.Is(context.Cause(first), ErrInterrupted) {
			t.Errorf("holder's cause: %v, want ErrInterrupted", context.Cause(first))
		}
		done()
		group.Wait()
		if len(order) != 2 || order[0] != "kill" || order[1] != "start" {
			t.Errorf("order %v, want kill before start", order)
		}
	})
}

func TestWaiterLeavesWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table
		_, done, _ := table.Take(t.Context(), 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := table.Take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's own error", err)
		}
		done()
		_, done, err := table.Take(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		done()
	})
}
