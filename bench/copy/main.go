// Command copy measures whole-image copies from each repository to a file of this host: Hayloft's, which check every
// chunk on the way, and, in the same run, what an administrator would use instead: cp, dd, scp, curl, rclone (if it is installed), rbd
// export, qemu-img convert. Every copy ends when the file is durable. The servers are real and on this machine's loopback, so that the figures
// say what the copying costs, and nothing of networks.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	size    int64 // MiB
	rounds  int
	only    string
	timeout time.Duration
	json    bool
	dir     string
}

func main() {
	var o options
	flag.Int64Var(&o.size, "size", 1024, "MiB of the image; half of it is data, a quarter zeros, a quarter holes")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, each of all copies, in turns")
	flag.StringVar(&o.only, "only", "", "repositories, with commas between (path, ssh, http, s3, iscsi, rbd); empty: all")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long one copy may take")
	flag.BoolVar(&o.json, "json", false, "print JSON instead of a table")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where files of the run are made: three times the image")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "copy:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "copy: "+format+"\n", args...) }

// result of one way to copy, as -json prints it.
type result struct {
	Repository string    `json:"repository"`
	Name       string    `json:"name"`
	Ours       bool      `json:"ours"`
	Seconds    []float64 `json:"seconds"`
	CPU        []float64 `json:"cpu_seconds"` // of this process and its children; servers excluded
	Median     float64   `json:"median_seconds"`
	Rate       float64   `json:"image_megabytes_per_second"` // by the median, 1e6 bytes of the image's length
	Ratio      float64   `json:"ratio_to_best_peer,omitempty"`
}

type outcome struct {
	Size    int64    `json:"image_bytes"`
	Data    int64    `json:"data_bytes"`
	Results []result `json:"results"`
}

func run(ctx context.Context, o options) (err error) {
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", flag.Arg(0))
	}
	if o.size < 4 || o.rounds < 1 {
		return fmt.Errorf("%d MiB in %d rounds: want at least 4, and one", o.size, o.rounds)
	}
	if os.Geteuid() != 0 {
		return errors.New("sshd, tgtd and Ceph need root")
	}
	dir, err := os.MkdirTemp(o.dir, "hlcopy-")
	if err != nil {
		return err
	}
	b := &bench{options: o, dir: dir}
	defer func() {
		b.close()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := b.makeImage(); err != nil {
		return err
	}
	out := outcome{Size: b.index.Length(), Data: b.index.DataBytes()}
	for _, r := range []struct {
		name string
		open func(context.Context) ([]way, error)
	}{{"path", b.path}, {"ssh", b.ssh}, {"http", b.http}, {"s3", b.s3}, {"iscsi", b.iscsi}, {"rbd", b.rbd}} {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), r.name) {
			continue
		}
		ways, err := r.open(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		measured, err := b.measure(ctx, r.name, ways)
		b.close() // one server at a time
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		out.Results = append(out.Results, measured...)
	}
	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(out)
	}
	out.print(os.Stdout)
	return nil
}

func (o outcome) print(w *os.File) {
	fmt.Fprintf(w, "image of %d MiB, %d MiB of them data\n\n%-8s %-34s %9s %9s %9s %7s\n", o.Size>>20, o.Data>>20, "FROM", "BY", "SECONDS", "MB/s", "CPU s", "RATIO")
	for _, r := range o.Results {
		ratio := ""
		if r.Ours {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		fmt.Fprintf(w, "%-8s %-34s %9.2f %9.0f %9.2f %7s\n", r.Repository, r.Name, r.Median, r.Rate, median(r.CPU), ratio)
	}
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return s[len(s)/2]
}

// target is where copies go.
func (b *bench) target() string { return filepath.Join(b.dir, "target") }
