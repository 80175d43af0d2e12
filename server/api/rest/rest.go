// Package rest serves the JSON interface that package api describes, over HTTP on a unix socket or over
// mutual TLS. It is thin: every request calls one operation.
package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/fleet"
	"hayloft/server/inventory"
	"hayloft/server/lifecycle"
	"hayloft/server/operation"
)

// Server serves the interface. All fields are needed.
type Server struct {
	Ops      *operation.Operations
	Inv      *inventory.Inventory
	Fleet    *fleet.Fleet
	Progress *lifecycle.Progress
	Version  api.Version
	Log      *slog.Logger
}

// handler answers a request with a value that becomes JSON, or an error.
type handler func(r *http.Request) (any, error)

// Handler is the whole interface. Who may connect is decided by what it is served on.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h handler) { mux.HandleFunc(pattern, s.answer(h)) }
	handle("GET /v1/version", func(*http.Request) (any, error) { return s.Version, nil })
	s.resources(handle)
	s.machines(handle)
	mux.HandleFunc("GET /v1/vms/{ref}/tunnel", s.tunnel)
	mux.HandleFunc("GET /v1/watch", s.watch)
	mux.HandleFunc("/", s.answer(func(r *http.Request) (any, error) {
		return nil, fault.Errorf(fault.NotFound, "there is no %s %s", r.Method, r.URL.Path)
	}))
	return mux
}

const maxBody = 4 << 20

// patience bounds a request: an operation takes milliseconds, so one that takes this long waits for a store
// that does not answer.
const patience = 20 * time.Second

func (s *Server) answer(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeoutCause(r.Context(), patience,
			fault.Errorf(fault.Unavailable, "the server's store does not answer; what was asked may or may not happen"))
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		value, err := h(r)
		if err != nil && ctx.Err() != nil {
			if err = context.Cause(ctx); errors.Is(err, context.Canceled) { // or the caller is gone, and hears nothing of it
				err = fault.Errorf(fault.Unavailable, "the server is stopping; what was asked may or may not happen")
			}
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if value == nil {
			value = struct{}{}
		}
		if err := json.NewEncoder(w).Encode(value); err != nil {
			s.Log.Debug("answer not sent", "path", r.URL.Path, "error", err)
		}
	}
}

var statuses = map[fault.Class]int{
	fault.Invalid:     http.StatusBadRequest,
	fault.NotFound:    http.StatusNotFound,
	fault.Exists:      http.StatusConflict,
	fault.WrongState:  http.StatusConflict,
	fault.Busy:        http.StatusConflict,
	fault.OutOfSpace:  http.StatusInsufficientStorage,
	fault.Permission:  http.StatusForbidden,
	fault.Unsupported: http.StatusNotImplemented,
	fault.Unavailable: http.StatusServiceUnavailable,
	fault.Corrupt:     http.StatusUnprocessableEntity,
}

// fail is the one place where an error becomes an HTTP status.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	class := fault.ClassOf(err)
	status, ok := statuses[class]
	if !ok {
		status = http.StatusInternalServerError
		s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	var body api.Error
	body.Error.Class, body.Error.Message = class.String(), err.Error()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller is gone if this fails
}

// decode reads a body of one JSON object; unknown fields are errors, so that a misspelt one is noticed.
func decode[T any](r *http.Request) (T, error) {
	var value T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&value)
	if errors.Is(err, io.EOF) {
		return value, nil
	}
	return value, fault.As(fault.Invalid, err)
}

// resolve turns a REF into an id: a number is an id, anything else a name.
func resolve[T any](ref, kind string, all []T, idName func(*T) (int, string)) (int, error) {
	if id, err := strconv.Atoi(ref); err == nil {
		return id, nil
	}
	found, count := -1, 0
	for i := range all {
		if id, name := idName(&all[i]); name == ref {
			found, count = id, count+1
		}
	}
	switch count {
	case 0:
		return 0, fault.Errorf(fault.NotFound, "%s %q does not exist", kind, ref)
	case 1:
		return found, nil
	}
	return 0, fault.Errorf(fault.Invalid, "%d %ss are named %q: use an id", count, kind, ref)
}

func (s *Server) clusterRef(ref string) (int, error) {
	if ref == "" {
		return cloud.DefaultCluster, nil
	}
	return resolve(ref, cloud.KindCluster, s.Inv.AllClusters(), func(c *cloud.Cluster) (int, string) { return c.ID, c.Name })
}

func (s *Server) hostRef(ref string) (int, error) {
	return resolve(ref, cloud.KindHost, s.Inv.AllHosts(), func(h *cloud.Host) (int, string) { return h.ID, h.Name })
}

func (s *Server) imageRef(ref string) (int, error) {
	return resolve(ref, cloud.KindImage, s.Inv.AllImages(), func(i *cloud.Image) (int, string) { return i.ID, i.Name })
}

func (s *Server) datastoreRef(ref string) (int, error) {
	return resolve(ref, cloud.KindDatastore, s.Inv.AllDatastores(), func(d *cloud.Datastore) (int, string) { return d.ID, d.Name })
}

func (s *Server) templateRef(ref string) (int, error) {
	return resolve(ref, cloud.KindTemplate, s.Inv.AllTemplates(), func(t *cloud.VMTemplate) (int, string) { return t.ID, t.Name })
}

func (s *Server) networkRef(ref string) (int, error) {
	return resolve(ref, cloud.KindNetwork, s.Inv.AllNetworks(), func(n *cloud.Network) (int, string) { return n.ID, n.Name })
}

// vmRef prefers machines that are not DONE, since names of machines come again.
func (s *Server) vmRef(ref string) (int, error) {
	if id, err := strconv.Atoi(ref); err == nil {
		return id, nil
	}
	rows := s.Inv.VMRows(func(vm *cloud.VM) bool { return vm.Name == ref && vm.State != cloud.StateDone })
	switch len(rows) {
	case 0:
		return 0, fault.Errorf(fault.NotFound, "vm %q does not exist", ref)
	case 1:
		return rows[0].ID, nil
	}
	return 0, fault.Errorf(fault.Invalid, "%d machines are named %q: use an id", len(rows), ref)
}
