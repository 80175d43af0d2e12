// Command coldstart measures what it takes until a machine answers over SSH on a host that has nothing of its image
// yet, when the repository is an https server behind a slow line: by Hayloft with and without a boot profile, by
// Hayloft copying whole first, and, in the same run, by plain QEMU on a copy made first and by QEMU's own
// copy-on-read over https. It also starts many machines of one image at once.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	images  string
	rate    float64
	runs    int
	many    int
	padding int64
	only    string
	timeout time.Duration
	json    bool
	binary  string
	dir     string
}

func main() {
	var o options
	flag.StringVar(&o.images, "images", "tiny,debian", "images: tiny (padded with incompressible data) and debian")
	flag.Float64Var(&o.rate, "mbit", 200, "the repository's line in Mbit/s")
	flag.IntVar(&o.runs, "runs", 1, "rounds, each of all variants")
	flag.IntVar(&o.many, "many", 20, "machines started at once from tiny, after the rounds; 0: not")
	flag.Int64Var(&o.padding, "padding", 2048, "MiB of incompressible data after tiny")
	flag.StringVar(&o.only, "only", "", "variants, by name with commas between; empty: all")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "how long one variant may take")
	flag.BoolVar(&o.json, "json", false, "print JSON instead of a table")
	flag.StringVar(&o.binary, "hayloft", "", "the hayloft program (default: built from this source)")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where files of the run are made: twice the images' size")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "coldstart:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "coldstart: "+format+"\n", args...) }

// outcome is all that is measured, as -json prints it. Sizes in bytes, times in seconds.
type outcome struct {
	Mbit   float64        `json:"mbit_per_second"`
	Images []imageOutcome `json:"images"`
	Many   *manyOutcome   `json:"many,omitempty"`
}

type imageOutcome struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	Data int64  `json:"data"` // in chunks that are not zero
	// ReadSet is what one boot reads: distinct sectors of 512 bytes, and the chunks that they are in.
	ReadSet  readSet         `json:"read_set"`
	Variants []variantResult `json:"variants"`
}

type variantResult struct {
	Name    string    `json:"name"`
	Seconds []float64 `json:"seconds_to_ssh"`
	Bytes   []int64   `json:"repository_bytes"` // bodies sent until the answer
	Median  float64   `json:"median_seconds"`
	Fetched int64     `json:"median_bytes"`
}

func (v *variantResult) add(seconds float64, bytes int64) {
	v.Seconds, v.Bytes = append(v.Seconds, seconds), append(v.Bytes, bytes)
	v.Median, v.Fetched = median(v.Seconds), median(v.Bytes)
}

func median[T int64 | float64](all []T) T {
	s := slices.Sorted(slices.Values(all))
	return s[len(s)/2]
}

type manyOutcome struct {
	Machines int     `json:"machines"`
	Seconds  float64 `json:"seconds_to_last_ssh"`
	Bytes    int64   `json:"repository_bytes"`
	OneBytes int64   `json:"repository_bytes_of_one"`
	Ratio    float64 `json:"ratio"`
}

func run(ctx context.Context, o options) (err error) {
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and bridges need root")
	}
	dir, err := os.MkdirTemp(o.dir, "hayloft-coldstart-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	if o.binary == "" {
		o.binary = filepath.Join(dir, "hayloft")
		build := exec.CommandContext(ctx, "go", "build", "-o", o.binary, "hayloft/cmd/hayloft")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("go build: %w", err)
		}
	}
	b := &bench{options: o, dir: dir}
	out := outcome{Mbit: o.rate}
	var tiny *subject
	for name := range strings.SplitSeq(o.images, ",") {
		s, err := b.subject(ctx, name)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		if name == "tiny" {
			tiny = s
		}
		result, err := b.image(ctx, s)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		out.Images = append(out.Images, result)
	}
	if o.many > 0 && tiny != nil {
		if out.Many, err = b.many(ctx, tiny); err != nil {
			return fmt.Errorf("%d machines: %w", o.many, err)
		}
	}
	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(out)
	}
	out.print(os.Stdout)
	return nil
}
