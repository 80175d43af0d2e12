package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/qemu/qmp"
	"hayloft/image/contextdisk"
	"hayloft/image/qcow2"
	"hayloft/lab/fleet"
	"hayloft/network"
	"hayloft/network/bridge"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// qemuStarter starts QEMU with the pattern's arguments, as a user of its own, in a control group of its own.
type qemuStarter struct {
	pattern *pattern
	site    *fleet.Site
	bridge  *bridge.Driver
	cpu     float64

	groups map[int]*cgroup.Group
	files  map[int][]*os.File // sockets and tap, as they are handed over
	reaped sync.WaitGroup
	mu     sync.Mutex
}

func (q *qemuStarter) prepare(ctx context.Context, twins []twin) error {
	q.groups, q.files = map[int]*cgroup.Group{}, map[int][]*os.File{}
	tree, err := cgroup.New(q.site.Name)
	if err != nil {
		return err
	}
	base, err := q.base()
	if err != nil {
		return err
	}
	return q.site.Namespace.Inside(func() error {
		for _, t := range twins {
			if tree.Available() {
				if q.groups[t.id], err = tree.Create("qemu-"+strconv.Itoa(t.id), cgroup.Limits{CPU: q.cpu, PIDs: 513}); err != nil {
					return err
				}
			}
			if err := q.disks(ctx, t, base); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			tap, err := q.bridge.Plug(ctx, theNetwork(), t.port(network.Tap))
			if err != nil {
				return err
			}
			if err := q.sockets(t, tap); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
		return nil
	})
}

// base is the file that the pattern's overlay lies on, in this site.
func (q *qemuStarter) base() (string, error) {
	bases, err := filepath.Glob(filepath.Join(q.site.Dir, storeDir, "base", "*", "data"))
	if err != nil {
		return "", err
	}
	for _, path := range bases {
		info, err := os.Stat(path)
		if err == nil && info.Size() == q.pattern.vm.Disks[0].ImageSize {
			return path, nil
		}
	}
	return "", fmt.Errorf("no base of %d bytes in %s", q.pattern.vm.Disks[0].ImageSize, q.site.Dir)
}

func (q *qemuStarter) disks(ctx context.Context, t twin, base string) error {
	for _, dir := range []string{"disks", "qemu"} {
		if err := os.Mkdir(filepath.Join(t.dir, dir), 0o711); err != nil {
			return err
		}
	}
	path := filepath.Join(t.dir, "disks/disk.0")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = qcow2.Write(file, qcow2.Overlay{Size: q.pattern.vm.Disks[0].Size, Backing: base, BackingFormat: "raw"})
	if err = errors.Join(err, file.Close(), os.Chown(path, t.uid, t.gid)); err != nil {
		return err
	}
	files, err := q.pattern.context(t, q.site.Prober.Key())
	if err != nil {
		return err
	}
	path = filepath.Join(t.dir, "context.img")
	if err := contextdisk.Write(ctx, path, files, 0o400); err != nil {
		return err
	}
	return os.Chown(path, t.uid, t.gid)
}

func (q *qemuStarter) sockets(t twin, tap *os.File) error {
	var files []*os.File
	for _, name := range []string{"qmp.sock", "console.sock"} {
		file, err := qmp.ListenSocket(filepath.Join(t.dir, "qemu", name))
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	q.files[t.id] = append(files, tap)
	path := filepath.Join(t.dir, "qemu/console.log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(log.Close(), os.Chown(path, t.uid, t.gid))
}

// start starts QEMU, which waits as its arguments say, and lets it go on over QMP.
func (q *qemuStarter) start(ctx context.Context, t twin) error {
	var args []string
	for _, arg := range q.pattern.args[1:] {
		args = append(args, t.change.Replace(arg))
	}
	logPath := filepath.Join(t.dir, "qemu/qemu.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	q.mu.Lock()
	files := q.files[t.id]
	delete(q.files, t.id)
	q.mu.Unlock()
	cmd := exec.Command(q.pattern.args[0], args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(t.uid), Gid: uint32(t.gid)}}
	if group := q.groups[t.id]; group != nil {
		err = group.Start(cmd)
	} else {
		err = cmd.Start()
	}
	for _, file := range files {
		file.Close()
	}
	if err != nil {
		return err
	}
	q.reaped.Go(func() { _ = cmd.Wait() })
	client, err := qmp.Dial(ctx, filepath.Join(t.dir, "qemu/qmp.sock"))
	if err != nil {
		said, _ := os.ReadFile(logPath)
		return fmt.Errorf("qemu: %w: %s", err, said)
	}
	return errors.Join(client.Execute(ctx, "cont", nil, nil), client.Close())
}

func (q *qemuStarter) close() {
	for _, files := range q.files {
		for _, file := range files {
			file.Close()
		}
	}
}
