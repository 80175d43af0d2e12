package mapped

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/internal/command"
)

// devices is a dmsetup that knows some devices: lines of name|uuid|open|minor.
type devices []string

func (d devices) Run(_ context.Context, c command.Cmd) ([]byte, error) {
	name := c.Args[len(c.Args)-1]
	var lines []string
	for _, line := range d {
		if !slices.Contains(c.Args, "--") || strings.HasPrefix(line, name+"|") {
			lines = append(lines, line+"\n")
		}
	}
	if len(lines) == 0 {
		return nil, &command.Error{Cmd: c, Status: 1, Stderr: "Device does not exist."}
	}
	return []byte(strings.Join(lines, "")), nil
}

var kind = Kind{Driver: "some-cache", Tag: "some", Parts: []string{"", "-meta"}}

// none is a Kernel that has no more than modes.
type none struct{ Kernel }

func (none) Modes() []cache.Mode         { return []cache.Mode{cache.Through, cache.Back} }
func (none) Check(context.Context) error { return errors.New("it is not there") }

func open(t *testing.T, instance string, run command.Runner) (*Driver, error) {
	t.Helper()
	return New(kind, kernelcache.Config{Instance: instance, Runner: run}, func(*Devices, kernelcache.Config) Kernel { return none{} })
}

func TestNamesAreTags(t *testing.T) {
	if _, err := open(t, "No Name", nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "some-cache") {
		t.Error(err)
	}
	d, err := open(t, "x", devices{"x-2.0|HAYLOFT-some-x-2.0|1|0", "x-2.0-meta|HAYLOFT-some-x-2.0-meta|1|1", "x-1.0-meta|HAYLOFT-some-x-1.0-meta|0|2",
		"y-3.0|HAYLOFT-some-y-3.0|0|3", "x-4.0|HAYLOFT-other-x-4.0|0|4", "x-5.0|SOMEBODY|0|5"})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := d.List(t.Context()); err != nil || !slices.Equal(names, []string{"1.0", "2.0"}) {
		t.Errorf("%q, %v", names, err)
	}
	s := kernelcache.Spec{Name: "5.0", Source: "/dev/null", Local: "/dev/null", Mode: cache.Back}
	for what, f := range map[string]func() error{
		"attach": func() error { _, err := d.Attach(t.Context(), s); return err },
		"status": func() error { _, err := d.Status(t.Context(), s); return err },
		"flush":  func() error { return d.Flush(t.Context(), s, nil) },
		"detach": func() error { return d.Detach(t.Context(), s) },
	} {
		if err := f(); !fault.Is(err, fault.Busy) || !strings.HasPrefix(err.Error(), "some-cache 5.0: ") || !strings.Contains(err.Error(), "SOMEBODY") {
			t.Errorf("%s beside a device of somebody else: %v", what, err)
		}
	}
	s.Name = "6.0"
	if _, err := d.Attach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "it is not there") {
		t.Errorf("attach without the kernel's help: %v", err)
	}
	s.Mode = cache.Around
	if _, err := d.Attach(t.Context(), s); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "AROUND") {
		t.Errorf("a mode that it has not: %v", err)
	}
}

// TestHeaderLost: a device of ours over a volume that says nothing of it.
func TestHeaderLost(t *testing.T) {
	blank := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(blank, make([]byte, local.Space), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := open(t, "x", devices{"x-2.0|HAYLOFT-some-x-2.0|0|0"})
	if err != nil {
		t.Fatal(err)
	}
	s := kernelcache.Spec{Name: "2.0", Source: "/dev/null", Local: blank, Mode: cache.Back}
	if _, err := d.Attach(t.Context(), s); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), blank) {
		t.Errorf("attach: %v", err)
	}
	if err := d.Flush(t.Context(), s, nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("flush: %v", err)
	}
}
