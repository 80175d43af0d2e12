package leaktest

import (
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestFind(t *testing.T) {
	end := make(chan struct{})
	go func() { <-end }()
	if err := find(0, nil); err == nil {
		t.Error("one that goes on is not found")
	}
	time.AfterFunc(time.Second, func() { close(end) }) // longer than goleak waits
	if err := Find(); err != nil {
		t.Errorf("one that ends late: %v", err)
	}
}
