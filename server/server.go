// Package server is the controller process: it keeps the state of the cloud, takes requests, and tells
// the agents what to do.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository/drivers"
	"hayloft/internal/command"
	"hayloft/server/api"
	"hayloft/server/api/rest"
	"hayloft/server/fleet"
	"hayloft/server/inventory"
	"hayloft/server/lifecycle"
	"hayloft/server/operation"
	"hayloft/server/scheduler"
	"hayloft/store"
	"hayloft/wire"
	"hayloft/wire/pki"
)

// Config is what a server is made of.
type Config struct {
	Name        string // of this server; "" is the host name
	StateDir    string // authority and datastores' default place; made 0711
	Store       store.Store
	FleetAddr   string   // host:port for agents; "" for none
	FleetSocket string   // unix socket for an agent on this machine; "" for none
	FleetNames  []string // further names and addresses in the server's certificate
	Socket      string   // unix socket of the JSON interface, mode 0600; "" for none
	HTTPSAddr   string   // host:port of the JSON interface with mutual TLS; "" for none
	Scheduler   scheduler.Scheduler
	Interval    time.Duration // SCHED_INTERVAL; 0: event-driven
	HostGrace   time.Duration // 0: 20 s
	Version     string
	Log         *slog.Logger
}

// Server runs between New and the end of Run.
type Server struct {
	cfg       Config
	inv       *inventory.Inventory
	authority *pki.Authority
	fleet     *fleet.Fleet
	rest      *rest.Server
	control   *lifecycle.Controller
	grpc      *grpc.Server
	listeners []net.Listener // for agents

	repositories *drivers.Pool
}

const defaultGrace = 20 * time.Second

// New opens everything; Run serves. Errors: fault.Busy when an address or socket is in use.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname()
	}
	if cfg.HostGrace == 0 {
		cfg.HostGrace = defaultGrace
	}
	if err := os.MkdirAll(cfg.StateDir, 0o711); err != nil {
		return nil, err
	}
	authority, err := pki.LoadOrCreateAuthority(filepath.Join(cfg.StateDir, "authority"))
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Open(ctx, cfg.Store, cfg.Log)
	if err != nil {
		return nil, err
	}
	cluster, err := clusterID(ctx, cfg.Store)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, inv: inv, authority: authority, repositories: &drivers.Pool{}}
	s.fleet = fleet.New(inv, authority, cluster, lifecycle.NewRecorder(inv, cfg.Log), cfg.Log)
	ops := &operation.Operations{Inv: inv, Scheduler: cfg.Scheduler, Log: cfg.Log, Now: time.Now, Open: s.repositories.Open}
	progress := &lifecycle.Progress{}
	s.control = lifecycle.NewController(inv, progress, lifecycle.Options{Name: cfg.Name, Scheduler: cfg.Scheduler, Interval: cfg.Interval,
		HostGrace: cfg.HostGrace, Imports: 2, Runner: command.Exec{}, Log: cfg.Log, Open: s.repositories.Open})
	s.rest = &rest.Server{Ops: ops, Inv: inv, Fleet: s.fleet, Progress: progress, Version: api.Version{Version: cfg.Version, Cluster: cluster}, Log: cfg.Log}
	names := append([]string{"localhost", "127.0.0.1", "::1", cfg.Name}, cfg.FleetNames...)
	s.grpc = grpc.NewServer(pki.ServerOptions(pki.ServerTLS(authority, names...), pki.FleetRules())...)
	wire.RegisterFleetServer(s.grpc, s.fleet)
	if cfg.FleetAddr != "" {
		listener, err := net.Listen("tcp", cfg.FleetAddr)
		if err != nil {
			return nil, fault.Errorf(fault.Busy, "address for agents: %w", err)
		}
		s.listeners = append(s.listeners, listener)
	}
	if cfg.FleetSocket != "" {
		listener, err := listenUnix(cfg.FleetSocket)
		if err != nil {
			return nil, err
		}
		s.listeners = append(s.listeners, listener)
	}
	return s, nil
}

// Run serves until ctx ends, and returns when everything has stopped.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.inv.Run(ctx) })
	group.Go(func() error { return s.work(ctx, group) })
	err := group.Wait()
	s.fleet.Wait()
	if err := s.repositories.Close(); err != nil {
		s.cfg.Log.Warn("repositories do not end", "error", err)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (s *Server) work(ctx context.Context, group *errgroup.Group) error {
	base := filepath.Join(s.cfg.StateDir, "datastores")
	if err := s.rest.Ops.Bootstrap(ctx, base); err != nil {
		return err
	}
	for _, ds := range s.inv.AllDatastores() {
		if ds.ID < cloud.FirstDatastore {
			if err := os.MkdirAll(ds.BasePath, 0o711); err != nil {
				return err
			}
		}
	}
	group.Go(func() error { return s.control.Run(ctx) })
	group.Go(func() error { return s.serveFleet(ctx) })
	if s.cfg.Socket != "" {
		listener, err := listenUnix(s.cfg.Socket)
		if err != nil {
			return err
		}
		group.Go(func() error { return s.serveHTTP(ctx, listener) })
	}
	if s.cfg.HTTPSAddr != "" {
		listener, err := s.listenTLS()
		if err != nil {
			return err
		}
		group.Go(func() error { return s.serveHTTP(ctx, listener) })
	}
	s.cfg.Log.Info("serving", "agents", s.cfg.FleetAddr, "fleet-socket", s.cfg.FleetSocket, "socket", s.cfg.Socket, "https", s.cfg.HTTPSAddr)
	return nil
}

func (s *Server) serveFleet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.fleet.Close()
		s.grpc.Stop()
	})
	defer stop()
	var group errgroup.Group
	for _, listener := range s.listeners {
		group.Go(func() error {
			if err := s.grpc.Serve(listener); err != nil && ctx.Err() == nil {
				return fmt.Errorf("serve agents: %w", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *Server) serveHTTP(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: s.rest.Handler(), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return ctx.Err()
}

// clusterID names the installation for ever.
func clusterID(ctx context.Context, st store.Store) (string, error) {
	const key = "cluster-id"
	rec, err := st.Get(ctx, key)
	if err != nil {
		return "", err
	}
	var id string
	if rec.Revision != 0 {
		return id, json.Unmarshal(rec.Value, &id)
	}
	id = randomID()
	form, err := json.Marshal(id)
	if err != nil {
		return "", err
	}
	if _, err := st.Txn(ctx, []store.Cond{{Key: key}}, []store.Op{store.Put(key, form)}); fault.Is(err, fault.Busy) {
		return clusterID(ctx, st) // another server was quicker
	} else if err != nil {
		return "", err
	}
	return id, nil
}
