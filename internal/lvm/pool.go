package lvm

import (
	"context"
	"fmt"
	"strconv"
)

// NewPool is a thin pool to create.
type NewPool struct {
	Group, Name string
	Size        int64 // bytes of data
	Metadata    int64 // bytes; 0: as PoolGeometry
	Chunk       int64 // bytes; 0: as PoolGeometry
	Tags        []string
}

const (
	minChunk      = 64 << 10
	minMetadata   = 4 << 20
	maxMetadata   = 15 << 30
	goodMetadata  = 4 << 30
	mappingBytes  = 128 // a mapping takes up to 64 bytes; trees are half full after many snapshots
	deviceReserve = 4 << 20
)

// PoolGeometry is chunk and metadata for a pool of that size in which each byte is mapped at most once for all its volumes,
// each counted whole: small chunks, as long as the metadata stays small too.
func PoolGeometry(size int64) (chunk, metadata int64) {
	for chunk = minChunk; size/chunk*mappingBytes > goodMetadata; chunk *= 2 {
	}
	return chunk, min(maxMetadata, max(minMetadata, size/chunk*mappingBytes)+deviceReserve)
}

// CreatePool makes a thin pool whose blocks are zeroed before they are given out. The group needs room for the metadata twice (LVM keeps a spare). fault.Exists, fault.OutOfSpace.
func (t Tools) CreatePool(ctx context.Context, p NewPool) error {
	if err := CheckVolume(p.Group, p.Name); err != nil {
		return err
	}
	chunk, metadata := PoolGeometry(p.Size)
	if p.Chunk != 0 {
		chunk = p.Chunk
	}
	if p.Metadata != 0 {
		metadata = p.Metadata
	}
	args := []string{"-y", "--type", "thin-pool", "-n", p.Name, "-L", bytesArg(p.Size), "--poolmetadatasize", bytesArg(metadata),
		"--chunksize", strconv.FormatInt(chunk>>10, 10) + "k", "--zero", "y", "--discards", "passdown"}
	for _, tag := range p.Tags {
		if err := CheckTag(tag); err != nil {
			return fmt.Errorf("thin pool %s/%s: %w", p.Group, p.Name, err)
		}
		args = append(args, "--addtag", tag)
	}
	return t.explained(ctx, p.Group, p.Name, "lvcreate", append(args, p.Group)...)
}
