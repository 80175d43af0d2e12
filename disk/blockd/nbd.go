package blockd

import (
	"context"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
)

// nbdPresenter implements Presenter on unix sockets.
type nbdPresenter struct {
	budget *nbd.Budget
	log    *slog.Logger
}

type nbdPresented struct {
	server *nbd.Server
	path   string
	socket unix.Stat_t
	stop   context.CancelFunc
	done   chan struct{}
	err    error // of the server; after done
}

func (p nbdPresenter) Present(e Export, d export.Device) (Presented, error) {
	log := p.log.With("export", e.Name)
	server, err := nbd.NewServer(nbd.Config{Description: "hayloft " + e.Name, Budget: p.budget, Log: log})
	if err != nil {
		return nil, err
	}
	l, err := listen(e.Path, e.UID, e.GID, 0o600)
	if err != nil {
		return nil, err
	}
	n := &nbdPresented{server: server, path: e.Path, done: make(chan struct{})}
	if err := unix.Lstat(e.Path, &n.socket); err != nil {
		l.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	go func() {
		defer close(n.done)
		defer l.Close()
		if n.err = server.Serve(ctx, l, d); n.err != nil {
			log.Error("export served no more", "error", n.err)
		}
	}()
	return n, nil
}

func (n *nbdPresented) Device() string   { return "" }
func (n *nbdPresented) Connections() int { return n.server.Status().Connections }

// Close also removes the socket's file, unless another is there by now.
func (n *nbdPresented) Close() error {
	n.stop()
	<-n.done
	var now unix.Stat_t
	if unix.Lstat(n.path, &now) == nil && now.Ino == n.socket.Ino && now.Dev == n.socket.Dev {
		return os.Remove(n.path)
	}
	return nil
}
