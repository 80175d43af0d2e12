// Command datapath measures warm hits over NBD: how fast Hayloft's own server hands out what is here already, against
// nbdkit and qemu-nbd exporting the same file, and against the file itself, on the same machine in the same run.
// fio's nbd engine is the client of all, over one connection on a unix socket. Every server is a process of its own;
// Hayloft's also tells how much it allocated for each request.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	size    int64 // MiB
	rounds  int
	time    time.Duration
	lines   string
	device  string
	exports int
	modes   bool
	latency time.Duration
	json    bool
	dir     string

	serve string // the directory of sockets; this process is the server then
	file  string
}

func main() {
	var o options
	flag.Int64Var(&o.size, "size", 512, "of the file, in MiB; it must fit into memory several times")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each line is measured with each server, in turn")
	flag.DurationVar(&o.time, "time", 3*time.Second, "of one measurement")
	flag.StringVar(&o.lines, "lines", "", "those to measure, separated by commas, like randread-4k-32 (default all)")
	flag.StringVar(&o.device, "device", "file", "what Hayloft exports: "+strings.Join(slices.Sorted(maps.Keys(devices())), ", "))
	flag.IntVar(&o.exports, "exports", 0, "instead of speed, measure the memory of so many busy exports in one process")
	flag.BoolVar(&o.modes, "modes", false, "instead of warm hits, measure writes in the modes NONE, THRU and BACK over a slow source")
	flag.DurationVar(&o.latency, "latency", 2*time.Millisecond, "of the slow source")
	flag.BoolVar(&o.json, "json", false, "print JSON instead of a table")
	flag.StringVar(&o.dir, "dir", "", "where the file is made (default the directory for temporary files)")
	flag.StringVar(&o.serve, "serve", "", "for this program itself: be the server")
	flag.StringVar(&o.file, "file", "", "for this program itself: what is exported")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "datapath:", err)
		os.Exit(1)
	}
}

func (o options) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("argument %q: want flags only", flag.Arg(0))
	case o.size < 1:
		return fmt.Errorf("-size %d: want at least 1", o.size)
	case o.rounds < 1:
		return fmt.Errorf("-rounds %d: want at least 1", o.rounds)
	case o.time < 10*time.Millisecond:
		return fmt.Errorf("-time %v: want at least 10ms", o.time)
	case devices()[o.device] == nil:
		return fmt.Errorf("-device %q: want one of %s", o.device, strings.Join(slices.Sorted(maps.Keys(devices())), ", "))
	case o.exports < 0 || o.exports > 1000:
		return fmt.Errorf("-exports %d: want at most 1000", o.exports)
	}
	_, err := o.wanted()
	return err
}

// wanted are the lines asked for.
func (o options) wanted() ([]line, error) {
	all := []line{{"read", "1m", 8}, {"randread", "4k", 1}, {"randread", "4k", 32}, {"write", "1m", 8}, {"randwrite", "4k", 1}, {"randwrite", "4k", 32}}
	if o.lines == "" && o.device == "base" { // which nobody writes to
		return all[:3], nil
	}
	if o.lines == "" {
		return all, nil
	}
	var some []line
	for name := range strings.SplitSeq(o.lines, ",") {
		i := slices.IndexFunc(all, func(l line) bool { return l.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("-lines: %q: want some of %v", name, all)
		}
		some = append(some, all[i])
	}
	return some, nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "datapath: "+format+"\n", args...) }

func run(ctx context.Context, o options) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.serve != "" {
		return serve(ctx, o)
	}
	dir, err := os.MkdirTemp(o.dir, "hayloft-datapath-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.file = filepath.Join(dir, "disk")
	if err := makeFile(o.file, o.size<<20); err != nil {
		return err
	}
	var result interface{ print() }
	switch {
	case o.modes:
		result, err = measureModes(ctx, o, dir)
	case o.exports > 0:
		result, err = measureMemory(ctx, o, dir)
	default:
		result, err = measure(ctx, o, dir)
	}
	if err != nil {
		return err
	}
	if !o.json {
		result.print()
		return nil
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

// makeFile writes bytes that no file system compresses; they are in the page cache then.
func makeFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	p := make([]byte, 1<<20)
	x := uint64(size) | 1
	for at := int64(0); at < size && err == nil; at += int64(len(p)) {
		for i := range p {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			p[i] = byte(x)
		}
		_, err = f.Write(p[:min(int64(len(p)), size-at)])
	}
	return errors.Join(err, f.Sync(), f.Close())
}
