// Package nbd hands Devices to hypervisors by the network block device protocol, and reads such exports of others:
// the server and the client of Hayloft's own. It follows doc/proto.md of github.com/NetworkBlockDevice/nbd; comments
// name its sections.
package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

const (
	defaultGrace       = 2 * time.Second
	stuckAfter         = time.Minute
	negotiationTime    = time.Minute
	defaultConnections = 32
	acceptAgain        = 50 * time.Millisecond
)

// Config is what a Server is made with.
type Config struct {
	// Names are the export's, at most 4096 bytes each; the first is listed first. The empty name, the protocol's
	// default export, always works.
	Names       []string
	Description string // for nbdinfo and the like, at most 4096 bytes
	// Budget is shared by all servers of a process; nil: one of its own.
	Budget *Budget
	// Connections is how many clients may be connected at a time; 0: 32.
	Connections int
	// Grace is how long requests under way may take when the server stops; 0: 2 seconds.
	Grace time.Duration
	Log   *slog.Logger // nil: slog.Default()
}

// Server exports one Device. Its counters go over all calls of Serve.
type Server struct {
	config      Config
	log         *slog.Logger
	connections atomic.Int64
	read        atomic.Int64
	written     atomic.Int64
}

// Status counts what a Server did.
type Status struct {
	Connections int   // now
	Read        int64 // bytes asked for by requests that were answered
	Written     int64
}

// NewServer makes a server. It fails for names that the protocol does not allow.
func NewServer(c Config) (*Server, error) {
	for _, s := range append(slices.Clone(c.Names), c.Description) {
		if len(s) > maxString {
			return nil, fault.Errorf(fault.Invalid, "nbd export: a name of %d bytes, at most %d are allowed", len(s), maxString)
		}
	}
	if len(c.Names) == 0 {
		c.Names = []string{""}
	}
	if c.Budget == nil {
		c.Budget = NewBudget()
	}
	if c.Connections == 0 {
		c.Connections = defaultConnections
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Server{config: c, log: c.Log.With("export", c.Names[0])}, nil
}

// Status is safe to be called at any time.
func (s *Server) Status() Status {
	return Status{int(s.connections.Load()), s.read.Load(), s.written.Load()}
}

// Serve exports device to all who connect to listener, whose connections must have descriptors, as those of package
// net. When ctx ends, it takes no more requests, answers those that are done within Config.Grace, closes everything,
// also the listener, and returns nil; clients that know how connect again elsewhere. Otherwise it returns why the
// listener does not work. It fails (fault.Busy) when the device does not end requests although it should.
func (s *Server) Serve(ctx context.Context, listener net.Listener, device export.Device) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	var clients clients
	err := s.accept(ctx, work, listener, device, &clients)
	clients.stop(false)
	ended := make(chan struct{})
	go func() {
		clients.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return err
	case <-time.After(s.config.Grace):
	}
	clients.stop(true)
	cancel()
	select {
	case <-ended:
		return err
	case <-time.After(stuckAfter):
		return errors.Join(err, fault.Errorf(fault.Busy, "nbd export %s: requests do not end", s.config.Names[0]))
	}
}

// accept serves connections until the listener is closed.
func (s *Server) accept(ctx, work context.Context, listener net.Listener, device export.Device, all *clients) error {
	for {
		conn, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case passes(err):
			s.log.Warn("nbd connection not accepted", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptAgain):
			}
			continue
		case err != nil:
			return err
		case s.connections.Load() >= int64(s.config.Connections):
			s.log.Warn("nbd connection refused", "connections", s.config.Connections)
			conn.Close()
			continue
		}
		s.connections.Add(1)
		client := &peer{conn: conn}
		all.add(client)
		all.Go(func() {
			defer s.connections.Add(-1)
			defer all.remove(client)
			err := s.serve(work, client, device)
			if err != nil && !gone(err) && !errors.Is(err, errAborted) && work.Err() == nil {
				s.log.Warn("nbd connection ended", "err", err)
			}
		})
	}
}

// passes reports whether accept(2) fails for what is over soon: the client's part, or a shortage.
func passes(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPROTO, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serve serves one client to its end.
func (s *Server) serve(ctx context.Context, client *peer, device export.Device) error {
	defer client.conn.Close()
	if goOn, err := client.negotiate(); err != nil || !goOn {
		return err
	}
	t, early, err := s.negotiate(client.conn, device)
	if err != nil {
		return err
	}
	sock, err := newSocket(client.conn, s.config.Budget)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := newConnection(ctx, s, sock, device, t, early)
	if !client.transmit(sock) {
		return nil
	}
	err = c.run()
	sock.stand()
	if errors.Is(err, io.EOF) && client.isStopped() {
		err = nil
	}
	if err != nil { // what is under way is of no use any more
		cancel()
		sock.shutdown(unix.SHUT_RDWR)
	}
	c.share.wait()
	client.transmit(nil)
	return err
}
