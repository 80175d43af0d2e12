package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sectors = 200

func written(t *testing.T, generations int64) (plan, *os.File) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	p := plan{seed: 7, sectors: sectors}
	if err := p.write(file, true, func(int64) error { return nil }, func(g int64) bool { return g > generations }); err != nil {
		t.Fatal(err)
	}
	return p, file
}

func TestVerifyAcceptsTheLastGenerations(t *testing.T) {
	p, file := written(t, 40)
	for _, synced := range []int64{40, 39, 38} {
		newer, err := p.verify(file, synced)
		if err != nil || (newer > 0) != (synced < 40) {
			t.Errorf("synced %d: %d newer sectors, %v", synced, newer, err)
		}
	}
}

func TestVerifyFindsLosses(t *testing.T) {
	p, file := written(t, 40)
	for name, spoil := range map[string]func() error{
		"older":  func() error { return put(file, p.content(p.changes(40)[0][0], 3), p.changes(40)[0][0]) },
		"place":  func() error { return put(file, p.content(8, 0), 9) },
		"torn":   func() error { return put(file, p.content(10, 1000)[:100], 10) },
		"zeroes": func() error { return put(file, make([]byte, sector), 11) },
		"newer":  func() error { return put(file, p.content(12, 50), 12) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.verify(file, 40); err == nil || !strings.Contains(err.Error(), "lost") {
			t.Errorf("%s: %v", name, err)
		}
		p, file = written(t, 40)
	}
	if _, err := p.verify(file, 41); err == nil {
		t.Error("a generation that was never written is not missed")
	}
}

func put(file *os.File, data []byte, place int64) error {
	_, err := file.WriteAt(data, place*sector)
	return err
}
