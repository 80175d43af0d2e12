package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"google.golang.org/grpc"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// Embedded runs etcd in this process and returns a store on it once it can write (with its cluster, if it
// has one) or ctx ends. Errors: fault.Busy when another process uses Dir or the addresses, fault.Corrupt
// when the data is damaged, fault.Unsupported when a newer etcd wrote it, fault.Invalid for a
// configuration that cannot work, fault.Unavailable when the cluster did not form in time.
func Embedded(ctx context.Context, cfg Config) (*Store, error) {
	m, err := join(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return m.open(m.stop), nil
}

// member is one running etcd server.
type member struct {
	cfg     Config
	server  *embed.Etcd
	lock    *os.File
	streams *streams
}

// join runs the server until it can write.
func join(ctx context.Context, cfg Config) (*member, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	streams := newStreams()
	log := loggerBuilder{to: cfg.Logger, starting: new(atomic.Bool)}
	serverConfig, err := cfg.server(log, grpc.ChainStreamInterceptor(streams.intercept))
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := inspect(cfg.Dir); err != nil {
		lock.Close()
		return nil, err
	}
	m := &member{cfg: cfg, lock: lock, streams: streams}
	log.starting.Store(true)
	m.server, err = start(serverConfig)
	log.starting.Store(false)
	if err != nil {
		lock.Close()
		return nil, err
	}
	if err := m.await(ctx); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	if err := m.forgetCandidates(ctx); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

// open makes a client in this process; release is called after it closed.
func (m *member) open(release func() error) *Store {
	client := v3client.New(m.server.Server)
	watcher := func() clientv3.Watcher {
		return clientv3.NewWatchFromWatchClient(adapter.WatchServerToWatchClient(v3rpc.NewWatchServer(m.server.Server)), client)
	}
	return newStore(client, watcher, m.cfg.Prefix, "etcd in "+m.cfg.Dir, m.cfg.ElectionTTL, release)
}

// start turns etcd's ways of giving up into errors. When it gives up by a panic it leaves files open that
// only the end of this process closes.
func start(cfg *embed.Config) (server *embed.Etcd, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			server = nil
			if failure, ok := reason.(startFailure); ok {
				reason = failure.reason
			}
			err = fault.Errorf(fault.Corrupt, "etcd cannot start from the data in %s: %v", cfg.Dir, reason)
		}
	}()
	server, err = embed.StartEtcd(cfg)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fault.Errorf(fault.Busy, "etcd in %s: %w", cfg.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd in %s: %w", cfg.Dir, err)
	}
	return server, nil
}

func (m *member) await(ctx context.Context) error {
	select {
	case <-m.server.Server.ReadyNotify():
		return nil
	case err := <-m.server.Err():
		return fmt.Errorf("etcd in %s: %w", m.cfg.Dir, err)
	case <-m.server.Server.StopNotify():
		return fault.Errorf(fault.Unavailable, "etcd in %s stopped while starting", m.cfg.Dir)
	case <-ctx.Done():
		return fault.Errorf(fault.Unavailable, "etcd in %s is not ready (%d members): %w",
			m.cfg.Dir, max(1, len(m.cfg.Members)), context.Cause(ctx))
	}
}

// forgetCandidates removes leaderships left behind by a process that was killed. When nobody else can
// have reached this etcd, whoever held one is gone, and nobody should wait for its lease to run out.
func (m *member) forgetCandidates(ctx context.Context) error {
	if !m.cfg.alone() || m.cfg.ClientURL != "" {
		return nil
	}
	client := v3client.New(m.server.Server)
	defer client.Close()
	_, err := client.Delete(ctx, m.cfg.Prefix+store.ElectionPrefix, clientv3.WithPrefix())
	if err != nil {
		return fault.Errorf(classOf(err), "etcd in %s: %w", m.cfg.Dir, err)
	}
	return nil
}

func (m *member) stop() error {
	m.streams.end()
	m.server.Close()
	return m.lock.Close()
}
