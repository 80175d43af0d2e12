package volume

import (
	"errors"
	"testing"

	"hayloft/disk/cache/storage"
)

// halfFile does writes that it says have failed.
type halfFile struct {
	storage.File
	failing bool
}

func (f *halfFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(p, offset)
	if f.failing {
		return 0, errors.New("failed")
	}
	return n, err
}

// TestBitmapAfterAFailedWrite: a bit that failed to be cleared may be clear on file, so a change that relies on it has it written.
func TestBitmapAfterAFailedWrite(t *testing.T) {
	dir, err := storage.OS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, err := dir.Create("map")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	half := &halfFile{File: file}
	m := newBitmap(half, 1, 2*bitsOfBlock)
	if err := errors.Join(m.writeAll(), m.set(5, 9)); err != nil || !m.filed(5, 9) {
		t.Fatal(err)
	}
	half.failing = true
	if _, err := m.clear(6, 7); err == nil || !m.has(6) || m.filed(6, 7) {
		t.Fatalf("cleared: %v", err)
	}
	if err := m.set(6, 7); err == nil || m.filed(6, 7) {
		t.Error("set on a file that fails")
	}
	half.failing = false
	if err := m.set(6, 7); err != nil || !m.filed(5, 9) {
		t.Error(err)
	}
	again := newBitmap(file, 1, 2*bitsOfBlock)
	if right, err := again.load(false); err != nil || !right || !again.hasAll(5, 9) || again.count.Load() != 4 {
		t.Errorf("on file: %v, %v, %d bits", right, err, again.count.Load())
	}
}
