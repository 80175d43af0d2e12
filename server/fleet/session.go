package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/inventory"
	"hayloft/server/lifecycle"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// session is one connected agent.
type session struct {
	fleet  *Fleet
	host   cloud.Host
	id     string
	stream grpc.BidiStreamingServer[wire.Report, wire.Order]
	cancel context.CancelCauseFunc

	sendMu sync.Mutex
	sent   map[int64][]byte // assignments the agent has, by vm, as they were sent
}

// Session holds a session with one agent until either side ends it. A new session of the same host ends
// the old one.
func (f *Fleet) Session(stream grpc.BidiStreamingServer[wire.Report, wire.Order]) error {
	caller, ok := pki.FromContext(stream.Context())
	if !ok || caller.Role != pki.Host {
		return status.Error(codes.PermissionDenied, "only enrolled hosts hold sessions")
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Hello == nil || first.Hello.Cluster != f.cluster {
		return status.Errorf(codes.FailedPrecondition, "host %s is enrolled with another installation", caller.Name)
	}
	host, err := f.hostNamed(caller.Name)
	if err != nil {
		return toStatus(err)
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s := &session{fleet: f, host: host, id: randomID(), stream: stream, cancel: cancel, sent: map[int64][]byte{}}
	f.enter(s)
	defer f.leave(s)
	if err := f.reports.Connected(ctx, host.ID, s.id, first.Hello); err != nil {
		return toStatus(err)
	}
	f.log.Info("host connected", "host", host.Name, "session", s.id)

	f.receivers.Go(func() { s.receive(ctx, first) }) // ends when this handler has returned
	err = s.send(ctx)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, io.EOF) {
		err = cause
	}
	f.log.Info("host disconnected", "host", host.Name, "session", s.id, "cause", fmt.Sprint(err))
	return toStatus(err)
}

func (f *Fleet) hostNamed(name string) (cloud.Host, error) {
	for _, h := range f.inv.AllHosts() {
		if h.Name == name {
			return h, nil
		}
	}
	return cloud.Host{}, fault.Errorf(fault.NotFound, "host %s is not known here", name)
}

func (f *Fleet) enter(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.sessions[s.host.ID]; old != nil {
		old.cancel(fault.Errorf(fault.Unavailable, "host %s opened another session", s.host.Name))
	}
	f.sessions[s.host.ID] = s
}

func (f *Fleet) leave(s *session) {
	f.mu.Lock()
	current := f.sessions[s.host.ID] == s
	if current {
		delete(f.sessions, s.host.ID)
	}
	f.mu.Unlock()
	if !current {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.stream.Context()), 5*time.Second)
	defer cancel()
	if err := f.reports.Gone(ctx, s.host.ID, s.id); err != nil {
		f.log.Warn("end of session not recorded", "host", s.host.Name, "error", err)
	}
}

// receive takes reports until the stream ends.
func (s *session) receive(ctx context.Context, r *wire.Report) {
	for {
		if r.Host != nil {
			if err := s.fleet.reports.Host(ctx, s.host.ID, s.id, r.Hello, r.Host); err != nil {
				s.cancel(err)
				return
			}
		}
		if len(r.Machines) > 0 {
			s.fleet.observe(r.Machines)
			if err := s.fleet.reports.Machines(ctx, s.host.ID, r.Machines); err != nil {
				s.cancel(err) // the agent reports all again when it comes back
				return
			}
		}
		if len(r.Prefetches) > 0 {
			s.fleet.observeFetches(s.host.ID, r.Prefetches)
			if err := s.fleet.reports.Prefetches(ctx, s.host.ID, r.Prefetches); err != nil {
				s.cancel(err)
				return
			}
		}
		var err error
		if r, err = s.stream.Recv(); err != nil {
			s.cancel(err)
			return
		}
	}
}

// send gives the agent its assignments: all of them first, then what changes.
func (s *session) send(ctx context.Context) error {
	sub := s.fleet.inv.Subscribe(func(c inventory.Change) bool {
		return c.Kind == cloud.KindVM || c.Kind == cloud.KindPrefetch && c.ID == s.host.ID
	})
	defer sub.Close()
	order := &wire.Order{Full: true, Prefetches: lifecycle.Prefetches(s.host.ID, s.fleet.inv)}
	for _, vm := range s.fleet.inv.VMsOnHost(s.host.ID) {
		if a := s.changed(&vm); a != nil {
			order.Assignments = append(order.Assignments, a)
		}
	}
	for {
		if order.Full || len(order.Assignments) > 0 || len(order.Dropped) > 0 || order.Prefetches != nil {
			if err := s.transmit(order); err != nil {
				return err
			}
		}
		changes, err := sub.Wait(ctx)
		if err != nil {
			return err
		}
		order = &wire.Order{}
		for _, c := range changes {
			if c.Kind == cloud.KindPrefetch {
				order.Prefetches = lifecycle.Prefetches(s.host.ID, s.fleet.inv)
				continue
			}
			vm, err := s.fleet.inv.VM(c.ID)
			if err == nil && vm.HostID == s.host.ID {
				if a := s.changed(&vm); a != nil {
					order.Assignments = append(order.Assignments, a)
				}
			} else if _, had := s.sent[int64(c.ID)]; had {
				delete(s.sent, int64(c.ID))
				order.Dropped = append(order.Dropped, int64(c.ID))
			}
		}
	}
}

// changed is the machine's assignment if it differs from what the agent has.
func (s *session) changed(vm *cloud.VM) *wire.Assignment {
	a, err := lifecycle.Assignment(vm, s.fleet.inv)
	if err != nil {
		s.fleet.log.Error("machine cannot be assigned", "vm", vm.ID, "host", s.host.Name, "error", err)
		return nil
	}
	form, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err == nil && slices.Equal(form, s.sent[a.Vm]) {
		return nil
	}
	s.sent[a.Vm] = form
	return a
}

func (s *session) transmit(o *wire.Order) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.stream.Send(o)
}
