package blockd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/waiting"
)

// Server answers the calls of Clients.
type Server struct {
	Service Service
	Version string
	// End is called when a client asks the process to end. nil: it cannot be asked.
	End func()
	// Waiting is how often a call tells what it waits for; 0: every 5 seconds.
	Waiting time.Duration
	// Connections, which may be nil, is told how many there are whenever that changes.
	Connections func(n int)

	mu   sync.Mutex
	open map[net.Conn]bool
}

// progressEvery bounds how often progress is told.
const progressEvery = 100 * time.Millisecond

// waitingEvery is how often a call tells what it waits for.
const waitingEvery = 5 * time.Second

// endLimit is how long calls may take to end when the server does.
const endLimit = 2 * time.Second

// Serve answers calls that come by l for s until ctx ends. Who is neither root nor the user of this process is
// refused. Calls that are under way end with ctx; l is closed.
func Serve(ctx context.Context, l net.Listener, s Service) error {
	return (&Server{Service: s}).Serve(ctx, l)
}

// Serve is like the function Serve.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+callPath+"{method}", s.call)
	mux.HandleFunc("GET "+holdPath, s.hold)
	mux.HandleFunc("POST "+endPath, s.end)
	server := &http.Server{Handler: s.checked(mux), BaseContext: func(net.Listener) context.Context { return base }, ConnContext: withPeer,
		ConnState: s.count, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	limit, done := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer done()
	if server.Shutdown(limit) != nil {
		_ = server.Close()
	}
	<-ended
	return nil
}

func (s *Server) count(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[net.Conn]bool{}
	}
	switch state {
	case http.StateNew:
		s.open[conn] = true
	case http.StateClosed, http.StateHijacked:
		delete(s.open, conn)
	default:
		return
	}
	if s.Connections != nil {
		s.Connections(len(s.open))
	}
}

type peerKey struct{}

// withPeer notes who is at the other end of a unix socket.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	var uid = -1
	if u, ok := conn.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					uid = int(c.Uid)
				}
			})
		}
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

// checked lets through who may ask and speaks our protocol.
func (s *Server) checked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(protocolHeader, strconv.Itoa(Protocol))
		uid, _ := r.Context().Value(peerKey{}).(int)
		if uid != 0 && uid != os.Geteuid() {
			refuse(w, http.StatusForbidden, fault.Errorf(fault.Permission, "blockd: user %d may not ask", uid))
			return
		}
		// Ending is asked of every version by every other.
		if theirs := r.Header.Get(protocolHeader); theirs != strconv.Itoa(Protocol) && r.URL.Path != endPath {
			refuse(w, http.StatusBadRequest, fault.Errorf(fault.Unsupported, "blockd %s (process %d) speaks protocol %d, the caller %q: one of the two is of another build, start the agent again",
				s.Version, os.Getpid(), Protocol, theirs))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.WriteHeader(status)
	_, _ = w.Write(encode(reply{Done: true, Error: toWire(err)}))
}

func (s *Server) hold(w http.ResponseWriter, r *http.Request) {
	_, _ = w.Write(encode(Hello{Protocol, s.Version, os.Getpid()}))
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func (s *Server) end(w http.ResponseWriter, _ *http.Request) {
	if s.End == nil {
		refuse(w, http.StatusNotImplemented, fault.Errorf(fault.Unsupported, "blockd: this process cannot be asked to end"))
		return
	}
	_, _ = w.Write(encode(reply{Done: true}))
	s.End()
}

// maxCall bounds the arguments of a call.
const maxCall = 1 << 20

func (s *Server) call(w http.ResponseWriter, r *http.Request) {
	var c call
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCall))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		refuse(w, http.StatusBadRequest, fault.Errorf(fault.Invalid, "blockd %s: arguments: %w", s.Version, err))
		return
	}
	out := &stream{w: w, control: http.NewResponseController(w)}
	ctx, watch := waiting.New(r.Context())
	end := watch.Every(cmp.Or(s.Waiting, waitingEvery), func(what string, _ time.Duration) { out.waiting(what) })
	last := s.carryOut(ctx, r.PathValue("method"), c, out.progress)
	end()
	last.Done = true
	if last.Error != nil && r.Context().Err() != nil {
		last.Error.Ending = true // or nobody reads it
	}
	out.write(last)
}

// carryOut carries out one call; report gets its progress.
func (s *Server) carryOut(ctx context.Context, method string, c call, report func(done, total int64)) reply {
	var r reply
	var err error
	missing := func(what string) reply {
		return reply{Error: toWire(fault.Errorf(fault.Invalid, "blockd: call %s without %s", method, what))}
	}
	switch method {
	case "base":
		if c.Base == nil {
			return missing("base")
		}
		status, failed := s.Service.Base(ctx, *c.Base)
		r.Base, err = &status, failed
	case "preload":
		if c.Preload == nil {
			return missing("preload")
		}
		err = s.Service.Preload(ctx, *c.Preload, report)
	case "export":
		if c.Export == nil {
			return missing("export")
		}
		err = s.Service.Export(ctx, *c.Export)
	case "unexport":
		err = s.Service.Unexport(ctx, c.Name)
	case "settle":
		err = s.Service.Settle(ctx, c.Name, report)
	case "discard":
		err = s.Service.Discard(ctx, c.Name)
	case "drop-base":
		err = s.Service.DropBase(ctx, c.Name)
	case "status":
		status, failed := s.Service.Status(ctx)
		r.Status, err = &status, failed
	default:
		err = fault.Errorf(fault.Unsupported, "blockd %s: knows no call %q", s.Version, method)
	}
	r.Error = toWire(err)
	return r
}

// stream is an answer in lines.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController

	mu   sync.Mutex
	last time.Time
	over bool
}

func (s *stream) progress(done, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); !s.over && (now.Sub(s.last) >= progressEvery || done == total) {
		s.last = now
		_, _ = s.w.Write(encode(reply{Progress: &progress{done, total}}))
		_ = s.control.Flush()
	}
}

func (s *stream) waiting(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if what != "" && !s.over {
		_, _ = s.w.Write(encode(reply{Waiting: what}))
		_ = s.control.Flush()
	}
}

func (s *stream) write(last reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	_, _ = s.w.Write(encode(last))
}

// Listen makes the socket of a daemon's process in its state directory, which is made when missing and closed to
// all others.
func Listen(stateDir string) (*net.UnixListener, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(stateDir, 0o700); err != nil {
		return nil, err
	}
	return listen(socketOf(stateDir), os.Geteuid(), os.Getegid(), 0o600)
}

func socketOf(stateDir string) string {
	return fmt.Sprintf("%s/%s", strings.TrimRight(stateDir, "/"), SocketFile)
}
