package flashcache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/internal/command"
	"hayloft/internal/dm"
	"hayloft/lab/labtest"
)

// printed is what a device prints as its table, after the driver's source.
const printed = `0 8192 flashcache conf:
	ssd dev (/dev/mapper/x-1.0-ssd), disk dev (/dev/vdb) cache mode(%s)
	capacity(62M), associativity(512), data block size(4K) metadata block size(4096b)
	disk assoc(0K)
	skip sequential thresh(0K)
	total blocks(15872), cached blocks(1000), cache percent(6)
	dirty blocks(%d), dirty percent(0)
	nr_queued(0)
Size Hist: 4096:3`

func TestParseTable(t *testing.T) {
	for name, mode := range modeNames {
		s, err := parseTable(fmt.Sprintf(printed, name, 7))
		if err != nil || s.Mode != mode || s.Size != 62<<20 || s.Cached != 1000*4096 || s.Dirty != 7*4096 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	for _, bad := range []string{"", "0 8 linear 1:2 3", fmt.Sprintf(printed, "WRITE_ONLY", 7), fmt.Sprintf(printed, "WRITE_BACK", 1001),
		strings.ReplaceAll(fmt.Sprintf(printed, "WRITE_BACK", 7), "dirty blocks", "dirt")} {
		if _, err := parseTable(bad); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// module stands for the kernel's module and dmsetup: what is written goes to the source, and what it prints is as documented.
type module struct {
	command.Exec
	targets string
	tables  []string // of the target flashcache that were asked for
	mode    string
	dirty   int
}

func (m *module) Run(ctx context.Context, c command.Cmd) ([]byte, error) {
	switch table := string(c.Stdin); {
	case c.Name == "modprobe":
		return nil, nil
	case c.Args[0] == "targets":
		return []byte("linear           v1.4.0\n" + m.targets), nil
	case c.Args[0] == "create" && strings.Contains(table, " flashcache "):
		m.tables = append(m.tables, strings.TrimSpace(table))
		fields := strings.Fields(table)
		c.Stdin = []byte(fmt.Sprintf("0 %s linear %s 0\n", fields[1], fields[3]))
	case c.Args[0] == "table":
		return []byte(fmt.Sprintf(printed, m.mode, m.dirty)), nil
	}
	return m.Exec.Run(ctx, c)
}

func TestNoModule(t *testing.T) {
	d, err := New(kernelcache.Config{Instance: "x", Runner: &module{}})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Check(t.Context())
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "flashcache") {
		t.Error(err)
	}
}

// TestGuestScripted goes through the life of a cache with real devices, but for the module.
func TestGuestScripted(t *testing.T) {
	labtest.Guest(t)
	disks := labtest.Disks(t, 2)
	ctx := t.Context()
	sysctl := t.TempDir()
	m := &module{targets: "flashcache       v3.1.1\n", mode: "WRITE_BACK", dirty: 3}
	settings := filepath.Join(sysctl, "dev/flashcache/x-1.0-ssd+"+filepath.Base(disks[0]))
	d, err := newIn(kernelcache.Config{Instance: "x", Runner: m}, sysctl)
	if err == nil {
		err = os.MkdirAll(settings, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := kernelcache.Spec{Name: "1.0", Source: disks[0], Local: disks[1], Mode: cache.Back}
	status, err := d.Attach(ctx, s)
	if err != nil || status.Dirty != 3*4096 || status.Device != "/dev/hayloft/x-1.0" {
		t.Fatalf("%+v, %v", status, err)
	}
	const sectors = 1 << 30 / 512
	start := fmt.Sprintf("0 %d flashcache %s /dev/mapper/x-1.0-ssd x-1.0 ", sectors, disks[0])
	if names, err := d.List(ctx); err != nil || len(names) != 1 || names[0] != "1.0" {
		t.Errorf("list %q, %v", names, err)
	}
	if err := d.Detach(ctx, s); !fault.Is(err, fault.WrongState) {
		t.Errorf("detach while dirty: %v", err)
	}
	// The host goes down and comes back: what is there is loaded.
	tools := dm.Tools{Runner: command.Exec{}}
	if err := errors.Join(tools.Remove(ctx, "x-1.0", "HAYLOFT-flashcache-x-1.0"), tools.Remove(ctx, "x-1.0-ssd", "HAYLOFT-flashcache-x-1.0-ssd")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Attach(ctx, s); err != nil {
		t.Fatal(err)
	}
	m.dirty = 0
	if err := d.Flush(ctx, s, nil); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(settings, "do_sync")); err != nil || string(text) != "1\n" {
		t.Errorf("do_sync is %q, %v", text, err)
	}
	if err := d.Detach(ctx, s); err != nil {
		t.Fatal(err)
	}
	m.mode, s.Mode = "WRITE_AROUND", cache.Around
	if _, err := d.Attach(ctx, s); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Flush(ctx, s, nil), d.Detach(ctx, s)); err != nil {
		t.Error(err)
	}
	want := []string{start + "1 2 8", start + "1 1", start + "3 2 8"}
	if strings.Join(m.tables, "\n") != strings.Join(want, "\n") {
		t.Errorf("tables %q, want %q", m.tables, want)
	}
	if _, err := os.Stat(status.Device); err == nil {
		t.Errorf("%s is there yet", status.Device)
	}
}
