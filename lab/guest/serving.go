package guest

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
)

// runs cuts the sectors, in order, into pieces of 1 to 16 and tells for each whether it is kept, with that chance.
func runs(sectors map[int64][]byte, random *rand.Rand, chance float64) iter.Seq2[[]int64, bool] {
	return func(yield func([]int64, bool) bool) {
		order := slices.Sorted(maps.Keys(sectors))
		for len(order) > 0 {
			n := min(1+random.IntN(16), len(order))
			if !yield(order[:n], random.Float64() < chance) {
				return
			}
			order = order[n:]
		}
	}
}

// serving is a disk that QEMU reads and writes through this process.
type serving struct {
	disk   *volatile
	theirs *os.File // QEMU's end of the connection
	cancel context.CancelFunc
	ended  chan error
}

// serve begins to serve the disk of a file.
func serve(name string) (*serving, error) {
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	disk, err := newVolatile(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	server, err := nbd.NewServer(nbd.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &serving{disk: disk, theirs: theirs, cancel: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- server.Serve(ctx, newSingle(conn), export.Device(disk)) }()
	return s, nil
}

// end ends serving, after QEMU; with a source of chance it is a power cut.
func (s *serving) end(random *rand.Rand) (dirty, lost int, err error) {
	s.cancel()
	err = <-s.ended
	if random != nil {
		var failed error
		dirty, lost, failed = s.disk.lose(random)
		err = errors.Join(err, failed)
	}
	return dirty, lost, errors.Join(err, s.disk.file.Close())
}

// socketpair returns both ends of a connection, the second for a child.
func socketpair() (net.Conn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// single is a listener with one connection.
type single struct {
	conn   net.Conn
	taken  chan struct{} // has an element until the connection was accepted
	closed chan struct{}
	once   sync.Once
}

func newSingle(conn net.Conn) *single {
	l := &single{conn: conn, taken: make(chan struct{}, 1), closed: make(chan struct{})}
	l.taken <- struct{}{}
	return l
}

// Accept implements net.Listener.
func (l *single) Accept() (net.Conn, error) {
	select {
	case <-l.taken:
		return l.conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *single) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *single) Addr() net.Addr { return l.conn.LocalAddr() }
