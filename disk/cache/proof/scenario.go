package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"

	"hayloft/disk/cache"
)

// Subject is what is to be proven.
type Subject struct {
	Name string
	// Volume opens a volume, which is run in Mode, in changing ones when that is ""; or Base a base.
	Volume func(context.Context, cache.VolumeConfig) (cache.Volume, error)
	Mode   cache.Mode
	Base   func(context.Context, cache.BaseConfig) (cache.Base, error)
	// Gentle leaves out failures of the host's own disk (EIO, no space) and of the repository's power.
	Gentle bool
}

// Result of a scenario.
type Result struct {
	Points     int // crashes, each at a random change of disk or repository
	Operations int // of the machine
}

// Violation is a broken promise, with all that led to it.
type Violation struct {
	Subject string
	Seed    uint64
	What    string
	Log     []string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s, seed %d: %s\n  %s\n  again: HAYLOFT_PROOF_SEED=%d", v.Subject, v.Seed, v.What, strings.Join(v.Log, "\n  "), v.Seed)
}

// Run does one scenario. It is to be called in a bubble of testing/synctest, where time costs nothing.
func Run(seed uint64, s Subject) (Result, error) {
	return RunWith(NewTools(), seed, s)
}

// Tools are what scenarios that run one after the other can share. Not safe for concurrent use.
type Tools struct {
	same          *same
	live, durable []byte
}

// NewTools makes them.
func NewTools() *Tools { return &Tools{same: newSame()} }

// buffers of a size, of any content.
func (t *Tools) buffers(size int64) (live, durable []byte) {
	if int64(cap(t.live)) < size {
		t.live, t.durable = make([]byte, size), make([]byte, size)
	}
	return t.live[:size], t.durable[:size]
}

// RunWith is Run with tools that were used before.
func RunWith(tools *Tools, seed uint64, s Subject) (Result, error) {
	r := &runner{tools: tools, subject: s, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x70726f6f66))}
	if s.Base != nil {
		(&baseScenario{runner: r}).run()
	} else {
		(&volumeScenario{runner: r}).run()
	}
	if r.what != "" {
		return r.result, &Violation{s.Name, seed, r.what, r.log}
	}
	return r.result, nil
}

// runner is what scenarios have in common.
type runner struct {
	tools   *Tools
	subject Subject
	seed    uint64
	rng     *rand.Rand
	result  Result

	mu   sync.Mutex
	log  []string
	what string
}

func (r *runner) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, fmt.Sprintf(format, args...))
}

// fail notes the first violation, which ends the scenario.
func (r *runner) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.what == "" {
		r.what = fmt.Sprintf(format, args...)
		r.log = append(r.log, "VIOLATION: "+r.what)
	}
}

func (r *runner) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.what != ""
}

// oneIn is true by a chance of 1/n.
func (r *runner) oneIn(n int) bool { return r.rng.IntN(n) == 0 }

// image is random: in pieces of 4 KiB that are zero, or alike, or different.
func (r *runner) image(size int64) []byte {
	const piece = 4 << 10
	b := make([]byte, size)
	for at := int64(0); at < size; at += piece {
		p := b[at:min(at+piece, size)]
		switch r.rng.IntN(4) {
		case 0:
		case 1:
			copy(p, b[:piece])
		default:
			for i := 0; i < len(p); i += sector {
				copy(p[i:], r.tools.same[byte(mix(uint64(at)+uint64(i))|1)][:])
			}
		}
	}
	return b
}

// span is a random range of the disk, often where others were.
func (r *runner) span(size int64, longest int64) (offset, length int64) {
	length = 1 + r.rng.Int64N(longest)
	switch r.rng.IntN(4) {
	case 0, 1:
		length = (length + sector - 1) / sector * sector
		if r.oneIn(2) {
			length = (length + 4095) / 4096 * 4096
		}
	}
	length = min(length, size)
	offset = r.rng.Int64N(size - length + 1)
	if r.oneIn(2) { // a place that many like
		offset = min(offset%(32<<10), size-length)
	}
	switch r.rng.IntN(4) {
	case 0, 1:
		offset = offset / 4096 * 4096
	case 2:
		offset = offset / sector * sector
	}
	return offset, length
}
