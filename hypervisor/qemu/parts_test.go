package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

func TestSavedHeader(t *testing.T) {
	h := savedHeader{platform{"pc-i440fx-7.2", tcgCPU, "tcg", 2, 512}, "QEMU 7.2.22"}
	text, err := h.encode()
	if err != nil || len(text) != headerSize {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	if got, err := decodeHeader(text); err != nil || got != h {
		t.Errorf("got %+v, %v", got, err)
	}
	newer := platform{"pc-i440fx-9.0", "other", "tcg", 2, 512}
	if p, err := h.fitting(newer, "QEMU 9.0.0"); err != nil || p != h.Platform {
		t.Errorf("on a newer host: %+v, %v; want the saved platform", p, err)
	}
	for what, here := range map[string]platform{
		"MB":      {"pc-i440fx-7.2", tcgCPU, "tcg", 2, 1024},
		"CPUs":    {"pc-i440fx-7.2", tcgCPU, "tcg", 1, 512},
		"kvm":     {"pc-i440fx-7.2", "host", "kvm", 2, 512},
		"chipset": {"pc-q35-7.2", tcgCPU, "tcg", 2, 512},
	} {
		if _, err := h.fitting(here, h.QEMU); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v, want a refusal that names %s", here, err, what)
		}
	}
	micro := savedHeader{platform{"microvm", tcgCPU, "tcg", 1, 64}, "QEMU 7.2.22"}
	if _, err := micro.fitting(micro.Platform, "QEMU 8.0.0"); !fault.Is(err, fault.Invalid) {
		t.Errorf("microvm on another version: %v", err)
	}
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add([]byte(stateMagic + `{"QEMU":"x"}`))
	f.Add([]byte("QEVM"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := decodeHeader(text); err == nil && !bytes.HasPrefix(text, []byte(stateMagic)) {
			t.Error("accepted without its mark")
		}
	})
}

func TestOpenStateRefuses(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte(stateMagic+"{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openState(short); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), short) {
		t.Errorf("truncated: %v", err)
	}
	if _, _, err := openState(short + "x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestParseStat(t *testing.T) {
	u, err := parseStat("12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 99 1000 25 18446744073709551615")
	if err != nil || u.CPUSeconds != 2 || u.MemoryBytes != 25*int64(os.Getpagesize()) {
		t.Errorf("%+v, %v", u, err)
	}
	for _, text := range []string{"", "1 (x) S", strings.Repeat("x ", 60) + ")"} {
		if _, err := parseStat(text); err == nil {
			t.Errorf("accepted %q", text)
		}
	}
}

func TestConsoleLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	writer, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := writer.Write(bytes.Repeat([]byte("0123456789abcdef"), 16<<10)); err != nil {
		t.Fatal(err)
	}
	if err := writer.Sync(); err != nil { // some file systems count no blocks before
		t.Fatal(err)
	}
	if err := bound(path, 32<<10); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.WriteString("the end"); err != nil {
		t.Fatal(err)
	}
	text, err := tail(path, 1<<20)
	if err != nil || !bytes.HasSuffix(text, []byte("abcdefthe end")) || len(text) < 32<<10 || len(text) > 40<<10 {
		t.Errorf("%d bytes are left, ending in %q, %v", len(text), text[max(0, len(text)-20):], err)
	}
	if text, err := tail(path, 3); err != nil || string(text) != "end" {
		t.Errorf("last three bytes: %q, %v", text, err)
	}
}
