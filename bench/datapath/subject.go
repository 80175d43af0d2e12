package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	startsWithin = 2 * time.Minute
	asksEvery    = 10 * time.Millisecond
)

// subject is one thing that is measured.
type subject struct {
	name string
	fio  []string // how fio reaches it
	cmd  *exec.Cmd
	ask  io.WriteCloser // Hayloft's only
	said *bufio.Reader
}

// subjects starts all servers. ours is the first.
func subjects(ctx context.Context, o options, dir string) (all []*subject, err error) {
	defer func() {
		if err != nil {
			stopAll(all)
		}
	}()
	ours, err := startOurs(ctx, o, dir)
	if err != nil {
		return nil, err
	}
	all = append(all, ours)
	for _, peer := range []struct {
		name string
		args []string
	}{
		{"nbdkit", []string{"--foreground", "--unix", filepath.Join(dir, "nbdkit"), "file", o.file}},
		{"qemu-nbd", []string{"--persistent", "--shared=4", "--format=raw", "--cache=writeback", "--aio=io_uring", "--socket=" + filepath.Join(dir, "qemu-nbd"), o.file}},
	} {
		s := &subject{name: peer.name, fio: nbdEngine(filepath.Join(dir, peer.name)), cmd: exec.Command(peer.name, peer.args...)}
		if err := s.start(ctx, filepath.Join(dir, peer.name)); err != nil {
			return all, err
		}
		all = append(all, s)
	}
	for _, engine := range []string{"psync", "io_uring"} {
		all = append(all, &subject{name: "file, " + engine, fio: []string{"--ioengine=" + engine, "--filename=" + o.file}})
	}
	return all, nil
}

func nbdEngine(socket string) []string {
	return []string{"--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket}
}

// startOurs starts this program as a server.
func startOurs(ctx context.Context, o options, dir string) (*subject, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-serve", dir, "-file", o.file, "-device", o.device, "-exports", fmt.Sprint(o.exports))
	s := &subject{name: "hayloft", fio: nbdEngine(socketOf(dir, 0)), cmd: cmd}
	if s.ask, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.said = bufio.NewReader(out)
	return s, s.start(ctx, socketOf(dir, max(0, o.exports-1)))
}

// start returns when the socket is there.
func (s *subject) start(ctx context.Context, socket string) error {
	var stderr bytes.Buffer
	s.cmd.Stderr = &stderr
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fmt.Errorf("%s: %w", s.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startsWithin)
	defer cancel()
	tick := time.NewTicker(asksEvery)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.stop()
			return fmt.Errorf("%s: %w: %s", s.name, err, &stderr)
		}
	}
}

func (s *subject) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func stopAll(all []*subject) {
	for _, s := range all {
		s.stop()
	}
}

// usage asks our server.
func (s *subject) usage() (u usage, err error) {
	if _, err = io.WriteString(s.ask, "\n"); err != nil {
		return u, fmt.Errorf("%s: %w", s.name, err)
	}
	answer, err := s.said.ReadBytes('\n')
	if err != nil {
		return u, fmt.Errorf("%s: %w", s.name, err)
	}
	return u, json.Unmarshal(answer, &u)
}
