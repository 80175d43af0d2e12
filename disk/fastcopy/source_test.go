package fastcopy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/fastcopy"
)

// lateSource gives up a read, and goes on writing into its buffer: as repository.Source may after fault.Unavailable.
type lateSource struct {
	given chan []byte
}

func (s lateSource) ReadAt(p []byte, _ int64) (int, error) {
	s.given <- p
	return 0, fault.Errorf(fault.Unavailable, "no answer in time")
}

// A source that did not answer in time may still answer: its buffer is nobody else's, and memory.
func TestSourceThatAnswersLate(t *testing.T) {
	s := lateSource{make(chan []byte, 256)}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := fastcopy.ToPath(t.Context(), path, fastcopy.Spec{Source: s, Size: 64 << 20})
	if !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	close(s.given)
	n := 0
	for p := range s.given {
		for i := range p {
			p[i] = 1
		}
		n++
	}
	if n == 0 {
		t.Error("nothing was read")
	}
}

// lyingHoles says nonsense about where data is.
type lyingHoles struct {
	*bytes.Reader
	start, end int64
}

func (l lyingHoles) NextData(int64) (start, end int64, err error) { return l.start, l.end, nil }

func TestHolesOfALiar(t *testing.T) {
	for _, data := range [][2]int64{{0, 0}, {1 << 20, 5}, {-10, -5}} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := fastcopy.ToPath(t.Context(), path, fastcopy.Spec{Source: lyingHoles{bytes.NewReader(make([]byte, 2<<20)), data[0], data[1]}, Size: 2 << 20})
		if !fault.Is(err, fault.Corrupt) {
			t.Errorf("%v: %v", data, err)
		}
	}
}
