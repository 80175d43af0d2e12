package fastcopy

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/image"
)

// run is a range to copy, or to make zeros.
type run struct {
	offset, length int64
	zero           bool
	counted        int64 // bytes of progress
}

// maxZero is the longest run of zeros: one system call that cannot be interrupted.
const maxZero = 256 << 20

// plan hands out runs from the first byte to the last.
type plan struct {
	spec    *Spec
	total   int64 // of what is counted as progress
	extents image.Extents

	mu       sync.Mutex
	at       int64
	from, to int64 // the data range at or after at, of extents
}

func newPlan(s *Spec) *plan {
	p := &plan{spec: s, total: s.Size}
	if s.Index == nil {
		p.extents, _ = s.Source.(image.Extents)
	} else if s.Zeros {
		p.total = s.Index.DataBytes()
	}
	if p.extents == nil {
		p.to = s.Size
	}
	return p
}

// next is the next run; io.EOF after the last.
func (p *plan) next() (run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at >= p.spec.Size {
		return run{}, io.EOF
	}
	if p.spec.Index != nil {
		return p.indexed(), nil
	}
	return p.ranged()
}

func (p *plan) take(end int64, zero bool) run {
	limit := int64(p.spec.Block)
	if zero {
		limit = maxZero
	}
	r := run{offset: p.at, length: min(end-p.at, limit), zero: zero}
	if r.counted = r.length; zero && p.spec.Index != nil && p.spec.Zeros {
		r.counted = 0
	}
	p.at += r.length
	return r
}

// indexed is the next run of chunks that are all zeros, or all not.
func (p *plan) indexed() run {
	index := p.spec.Index
	i := int(p.at / int64(index.ChunkSize()))
	zero := index.IsZero(i)
	limit := int64(p.spec.Block)
	if zero {
		limit = maxZero
	}
	end := p.at
	for i < index.Chunks() && index.IsZero(i) == zero && end-p.at < limit {
		offset, length := index.Range(i)
		end, i = offset+int64(length), i+1
	}
	return p.take(end, zero)
}

// ranged is the next run of a source without an index, which may know its holes.
func (p *plan) ranged() (run, error) {
	if p.extents != nil && p.at >= p.to {
		from, to, err := p.extents.NextData(p.at)
		switch {
		case errors.Is(err, io.EOF):
			p.from, p.to = p.spec.Size, p.spec.Size
		case err != nil:
			return run{}, err
		case from < p.at && to <= p.at, to <= from:
			return run{}, fault.Errorf(fault.Corrupt, "the source has data from byte %d to %d, looked for from %d", from, to, p.at)
		default: // whole grains, so that writes are aligned
			p.from = max(p.at, from/grain*grain)
			p.to = min(p.spec.Size, (to+grain-1)/grain*grain)
		}
	}
	if p.at < p.from {
		return p.take(min(p.from, p.spec.Size), true), nil
	}
	return p.take(p.to, false), nil
}

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

var zeros [grain]byte // never written to
