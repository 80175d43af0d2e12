package dm

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

func TestLinearTable(t *testing.T) {
	got := LinearTable(Linear{Device: "/dev/a", From: 8, Sectors: 16}, Linear{Device: "/dev/b", Sectors: 100})
	if want := "0 16 linear /dev/a 8\n16 100 linear /dev/b 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// says is a dmsetup that says one thing.
type says struct {
	out, stderr string
}

func (s says) Run(_ context.Context, c command.Cmd) ([]byte, error) {
	if s.stderr != "" {
		return nil, &command.Error{Cmd: c, Status: 1, Stderr: s.stderr}
	}
	return []byte(s.out), nil
}

func TestInfoAndList(t *testing.T) {
	d, err := Tools{says{out: "x|OURS-1|2|7\n"}}.Info(t.Context(), "x")
	if err != nil || d != (Device{Name: "x", UUID: "OURS-1", Open: 2, Node: "/dev/dm-7"}) {
		t.Errorf("%+v, %v", d, err)
	}
	list, err := Tools{says{out: "x|OURS-1|2|7\ny||0|8\n"}}.List(t.Context(), "OURS-")
	if err != nil || len(list) != 1 || list[0].Name != "x" {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := (Tools{says{out: "No devices found\n"}}).List(t.Context(), "OURS-"); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := (Tools{says{out: "x|y\n"}}).Info(t.Context(), "x"); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
}

func TestWhatDmsetupSays(t *testing.T) {
	for stderr, want := range map[string]fault.Class{
		"Device does not exist.\nCommand failed.\n":                                                     fault.NotFound,
		"device-mapper: remove ioctl on x  failed: No such device or address\nCommand failed.\n":        fault.NotFound,
		"device-mapper: remove ioctl on x  failed: Device or resource busy\nCommand failed.\n":          fault.Busy,
		"/dev/mapper/control: open failed: No such file or directory\nIs device-mapper driver missing?": fault.Unsupported,
		"device-mapper: reload ioctl on x (253:0) failed: Invalid argument\nCommand failed.\n":          fault.Internal,
	} {
		if _, err := (Tools{says{stderr: stderr}}).Info(t.Context(), "x"); fault.ClassOf(err) != want {
			t.Errorf("%q is %v, want %v", stderr, fault.ClassOf(err), want)
		}
	}
	if err := (Tools{says{out: "linear v1.4.0\n"}}).Check(t.Context(), "cache"); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

// held is a device that is open for as long.
type held struct{ until time.Time }

func (h held) Run(context.Context, command.Cmd) ([]byte, error) {
	open := 0
	if time.Now().Before(h.until) {
		open = 1
	}
	return fmt.Appendf(nil, "x|OURS-1|%d|7\n", open), nil
}

func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := (Tools{held{time.Now().Add(passing / 2)}}).Closed(t.Context(), "x"); err != nil {
			t.Errorf("held by one who passes: %v", err)
		}
		began := time.Now()
		err := Tools{held{began.Add(time.Hour)}}.Closed(t.Context(), "x")
		if waited := time.Since(began); !fault.Is(err, fault.Busy) || waited < passing || waited > settling+time.Second {
			t.Errorf("held by one who stays: %v after %v", err, waited)
		}
	})
}
