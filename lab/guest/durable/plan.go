package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
)

const (
	sector = 512
	batch  = 16 // sectors that one generation changes at most
	ahead  = 2  // generations that the writer may be ahead of the last one that came out
)

// plan says which sectors each generation changes. Generation 0 is all sectors.
type plan struct {
	seed    uint64
	sectors int64
}

// changes are the places of sectors, in runs as writes of a file system are, that a generation changes.
func (p plan) changes(generation int64) [][2]int64 {
	random := rand.New(rand.NewPCG(p.seed, uint64(generation)))
	var runs [][2]int64
	for left := int64(batch); left > 0; {
		n := 1 + random.Int64N(left)
		runs = append(runs, [2]int64{random.Int64N(p.sectors - n + 1), n})
		left -= n
	}
	return runs
}

// content is what a generation has in a sector: seed, place and generation all over it, with a checksum.
func (p plan) content(place, generation int64) []byte {
	data := make([]byte, sector)
	for i := 0; i+32 <= sector; i += 24 {
		binary.BigEndian.PutUint64(data[i:], p.seed)
		binary.BigEndian.PutUint64(data[i+8:], uint64(place))
		binary.BigEndian.PutUint64(data[i+16:], uint64(generation))
	}
	binary.BigEndian.PutUint32(data[sector-4:], crc32.ChecksumIEEE(data[:sector-4]))
	return data
}

func (p plan) run(place, n, generation int64) []byte {
	var data []byte
	for i := range n {
		data = append(data, p.content(place+i, generation)...)
	}
	return data
}

// write writes generation after generation until stop, which may be nil, says so.
func (p plan) write(file *os.File, sync bool, say func(generation int64) error, stop func(generation int64) bool) error {
	const piece = 128
	for place := int64(0); place < p.sectors; place += piece {
		if _, err := file.WriteAt(p.run(place, min(piece, p.sectors-place), 0), place*sector); err != nil {
			return err
		}
	}
	for generation := int64(0); stop == nil || !stop(generation); generation++ {
		if generation > 0 {
			for _, run := range p.changes(generation) {
				if _, err := file.WriteAt(p.run(run[0], run[1], generation), run[0]*sector); err != nil {
					return err
				}
			}
		}
		if sync || generation == 0 {
			if err := file.Sync(); err != nil {
				return err
			}
		}
		if err := say(generation); err != nil {
			return err
		}
	}
	return nil
}

// verify returns how many sectors are newer than what came out. Losses are in the error.
func (p plan) verify(file io.ReaderAt, synced int64) (newer int, err error) {
	last := make([]int64, p.sectors) // generation of each sector that must be there
	for generation := int64(1); generation <= synced; generation++ {
		for _, run := range p.changes(generation) {
			for i := range run[1] {
				last[run[0]+i] = generation
			}
		}
	}
	later := map[int64][]int64{} // generations that may be there
	for generation := synced + 1; generation <= synced+ahead; generation++ {
		for _, run := range p.changes(generation) {
			for i := range run[1] {
				later[run[0]+i] = append(later[run[0]+i], generation)
			}
		}
	}
	var losses []error
	lost := 0
	for place := range p.sectors {
		data := make([]byte, sector)
		if _, err := file.ReadAt(data, place*sector); err != nil {
			return newer, err
		}
		allowed := append([]int64{last[place]}, later[place]...)
		switch n := p.which(data, place, allowed); {
		case n < 0:
			if lost++; lost <= 5 {
				losses = append(losses, fmt.Errorf("sector %d: %s, want generation %v", place, p.describe(data), allowed))
			}
		case n > 0:
			newer++
		}
	}
	if lost > 0 {
		return newer, fmt.Errorf("%d sectors lost: %w", lost, errors.Join(losses...))
	}
	return newer, nil
}

// which is the index of the generation whose content it is, -1 for none.
func (p plan) which(data []byte, place int64, generations []int64) int {
	for i, generation := range generations {
		if string(data) == string(p.content(place, generation)) {
			return i
		}
	}
	return -1
}

// describe says what a sector is that should be something else.
func (p plan) describe(data []byte) string {
	if binary.BigEndian.Uint32(data[sector-4:]) != crc32.ChecksumIEEE(data[:sector-4]) {
		return fmt.Sprintf("not a sector of ours, %x...", data[:16])
	}
	return fmt.Sprintf("generation %d of sector %d, seed %d", binary.BigEndian.Uint64(data[16:]), binary.BigEndian.Uint64(data[8:]), binary.BigEndian.Uint64(data))
}
