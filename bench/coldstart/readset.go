package main

import (
	"context"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"sync"

	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
)

// readSet is what was read at least once, in bytes.
type readSet struct {
	Sectors int64 `json:"sectors"` // in sectors of 512 bytes
	Chunks  int64 `json:"chunks"`  // in chunks of the index, those of zeros left out
}

// tracking remembers which sectors of a device were read. It is no export.Quick, so every read passes here.
type tracking struct {
	export.Device
	mu   sync.Mutex
	read []uint64
}

const sector = 512

func (t *tracking) ReadAt(ctx context.Context, p []byte, offset int64) error {
	t.mu.Lock()
	for s := offset / sector; s*sector < offset+int64(len(p)); s++ {
		t.read[s/64] |= 1 << (s % 64)
	}
	t.mu.Unlock()
	return t.Device.ReadAt(ctx, p, offset)
}

// measureReadSet boots plain QEMU on the image, here, and looks at what it reads.
func (b *bench) measureReadSet(ctx context.Context, s *subject) (set readSet, err error) {
	say("%s: what one boot reads", s.name)
	file, err := os.Open(s.path())
	if err != nil {
		return set, err
	}
	defer file.Close()
	device, err := nbd.NewFile(file, true)
	if err != nil {
		return set, err
	}
	t := &tracking{Device: device, read: make([]uint64, s.index.Length()/sector/64+1)}
	dir, err := os.MkdirTemp(b.dir, "readset-")
	if err != nil {
		return set, err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "nbd")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return set, err
	}
	server, err := nbd.NewServer(nbd.Config{})
	if err != nil {
		listener.Close()
		return set, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	serving, stop := context.WithCancel(ctx)
	var ended sync.WaitGroup
	ended.Go(func() { _ = server.Serve(serving, listener, t) })
	defer ended.Wait()
	defer stop()
	g, err := b.boot(ctx, s, dir, `json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":"`+socket+`"}}}`, "")
	if err != nil {
		return set, err
	}
	_, err = g.answers(ctx)
	g.end()
	if err != nil {
		return set, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	perChunk := s.index.ChunkSize() / sector
	for chunk := range s.index.Chunks() {
		touched := 0
		for w := chunk * perChunk / 64; w < (chunk+1)*perChunk/64 && w < len(t.read); w++ {
			touched += bits.OnesCount64(t.read[w])
		}
		if touched > 0 && !s.index.IsZero(chunk) {
			_, length := s.index.Range(chunk)
			set.Sectors += int64(touched) * sector
			set.Chunks += int64(length)
		}
	}
	return set, nil
}
