package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"hayloft/disk/export/nbd"
)

// usage is what the server process says when a line comes in on its standard input.
type usage struct {
	Mallocs uint64 `json:"mallocs"`
	Bytes   uint64 `json:"bytes"` // allocated
	RSS     int64  `json:"rss"`   // bytes
	Peak    int64  `json:"peak"`  // of RSS, bytes
}

// socketOf is where an export listens.
func socketOf(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("hayloft-%d", n)) }

// serve is the server process: it ends with its standard input.
func serve(ctx context.Context, o options) error {
	device, closer, err := devices()[o.device](ctx, o.file)
	if err != nil {
		return err
	}
	defer closer()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	budget := nbd.NewBudget()
	var servers sync.WaitGroup
	failed := make(chan error, 1)
	for n := range max(1, o.exports) {
		s, err := nbd.NewServer(nbd.Config{Budget: budget})
		if err != nil {
			return err
		}
		listener, err := net.Listen("unix", socketOf(o.serve, n))
		if err != nil {
			return err
		}
		servers.Go(func() {
			if err := s.Serve(ctx, listener, device); err != nil {
				failed <- err
			}
		})
	}
	go func() { failed <- answer(os.Stdin, os.Stdout) }()
	err = <-failed
	cancel()
	servers.Wait()
	return err
}

// answer says the usage for each line, and ends with the input.
func answer(in io.Reader, out io.Writer) error {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		u := usage{Mallocs: m.Mallocs, Bytes: m.TotalAlloc}
		var err error
		if u.RSS, u.Peak, err = resident(); err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(u); err != nil {
			return err
		}
	}
	return nil
}

// resident reads the memory of this process.
func resident() (now, peak int64, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0, err
	}
	for text := range strings.Lines(string(status)) {
		fields := strings.Fields(text)
		if len(fields) != 3 {
			continue
		}
		kilobytes, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			now = kilobytes << 10
		case "VmHWM:":
			peak = kilobytes << 10
		}
	}
	if now == 0 {
		return 0, 0, errors.New("/proc/self/status has no VmRSS")
	}
	return now, peak, nil
}
