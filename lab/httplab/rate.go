package httplab

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	piece = 16 << 10              // bytes written at a time, so that connections take turns
	burst = 20 * time.Millisecond // of sending that may be saved up
)

// bucket is a line of so many bytes a second. A nil bucket has no limit.
type bucket struct {
	rate int64
	mu   sync.Mutex
	free time.Time // when the line is free again
}

func newBucket(rate int64) *bucket {
	if rate <= 0 {
		return nil
	}
	return &bucket{rate: rate}
}

// take waits for n bytes' turn.
func (b *bucket) take(ctx context.Context, n int) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-burst); b.free.Before(earliest) {
		b.free = earliest
	}
	b.free = b.free.Add(time.Duration(int64(n) * int64(time.Second) / b.rate))
	delay := b.free.Sub(now)
	b.mu.Unlock()
	return wait(ctx, delay)
}

// listener makes its connections share a bucket and count.
type listener struct {
	net.Listener
	bucket *bucket
	wire   *atomic.Int64
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &conn{Conn: c, listener: l, ctx: ctx, cancel: cancel}, nil
}

type conn struct {
	net.Conn
	listener *listener
	ctx      context.Context // of the connection
	cancel   context.CancelFunc
}

func (c *conn) Close() error {
	c.cancel()
	return c.Conn.Close()
}

func (c *conn) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		k := min(len(p), piece)
		if err := c.listener.bucket.take(c.ctx, k); err != nil {
			return done, err
		}
		c.listener.wire.Add(int64(k))
		n, err := c.Conn.Write(p[:k])
		done += n
		c.listener.wire.Add(int64(n - k))
		if err != nil {
			return done, err
		}
		p = p[n:]
	}
	return done, nil
}
