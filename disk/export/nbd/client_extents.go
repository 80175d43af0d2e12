package nbd

import (
	"context"
	"io"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/repository"
)

var (
	_ repository.Target  = (*Client)(nil)
	_ repository.Extents = (*Client)(nil)
)

// statusWindow is how far one question about extents goes.
const statusWindow = 256 << 20

// Extents describes a range in order, until yield returns false. A server without base:allocation has data everywhere.
func (c *Client) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	if !c.peer.context || c.dialer.Depth {
		err := c.inside(offset, length)
		if err == nil && length > 0 {
			yield(export.Extent{Offset: offset, Length: length})
		}
		return err
	}
	return c.status(ctx, offset, length, func(offset, length int64, state uint32) bool {
		return yield(export.Extent{Offset: offset, Length: length, Hole: state&stateHole != 0, Zero: state&stateZero != 0})
	})
}

// Depths describes a range in order, until yield returns false: in which layer of its chain QEMU has it, 1 being the
// uppermost, and 0 none, so that it reads as zeros. fault.Unsupported for a Client that was dialled without Depth, and for a server
// that does not know.
func (c *Client) Depths(ctx context.Context, offset, length int64, yield func(offset, length int64, depth int) bool) error {
	if !c.peer.context || !c.dialer.Depth {
		return c.errorf(fault.Unsupported, "the server does not tell %s", contextDepth)
	}
	return c.status(ctx, offset, length, func(offset, length int64, state uint32) bool {
		return yield(offset, length, int(state))
	})
}

// status asks for the metadata context of a range.
func (c *Client) status(ctx context.Context, offset, length int64, yield func(offset, length int64, state uint32) bool) error {
	if err := c.inside(offset, length); err != nil {
		return err
	}
	for end := offset + length; offset < end; {
		q := &call{request: request{command: cmdBlockStatus, offset: uint64(offset), length: uint32(min(end-offset, statusWindow))}}
		if err := c.do(ctx, q); err != nil {
			return err
		}
		for _, d := range q.extents {
			n := min(int64(d.length), end-offset)
			if n > 0 && !yield(offset, n, d.state) {
				return nil
			}
			offset += n
		}
	}
	return nil
}

// NextData implements repository.Extents: data is all that is not known to read as zeros.
func (c *Client) NextData(offset int64) (start, end int64, err error) {
	start = -1
	if offset < c.Size() {
		err = c.Extents(c.ctx, offset, c.Size()-offset, func(e export.Extent) bool {
			if e.Zero {
				return start < 0
			}
			if start < 0 {
				start = e.Offset
			}
			end = e.Offset + e.Length
			return true
		})
	}
	if err == nil && start < 0 {
		err = io.EOF
	}
	return start, end, err
}
