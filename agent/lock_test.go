package agent

import (
	"context"
	"testing"
	"time"

	"hayloft/cloud/fault"
)

func TestLockWaitsForTheAgentBefore(t *testing.T) {
	dir := t.TempDir()
	release, err := Lock(t.Context(), dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(t.Context(), dir, 0); !fault.Is(err, fault.Busy) {
		t.Errorf("a second agent gets %v, not Busy", err)
	}
	got := make(chan error, 1)
	go func() {
		second, err := Lock(context.Background(), dir, time.Minute)
		if err == nil {
			second()
		}
		got <- err
	}()
	release()
	if err := <-got; err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
	if _, err := Lock(t.Context(), dir+"/missing", 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
