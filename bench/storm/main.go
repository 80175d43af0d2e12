// Command storm deploys many machines at once and measures how long it takes until each answers over SSH, and,
// in the same run, the floor: a plain loop that starts the same machines with the same arguments on overlays made
// beforehand, as many at a time, asked by the same prober. The ratio of the two is what Hayloft adds.
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
	"runtime"
	"strings"
	"syscall"
	"time"

	"hayloft/lab/fleet"
	"hayloft/lab/golden"
)

// options are the flags.
type options struct {
	vms         int
	kind        string
	order       string
	runs        int
	concurrency int
	chipset     string
	timeout     time.Duration
	floor       bool
	json        bool
	keep        bool
	down        bool
	binary      string
	cache       string
	dir         string
}

func main() {
	var o options
	flag.IntVar(&o.vms, "vms", 100, "machines")
	flag.StringVar(&o.kind, "kind", "qemu", "qemu or lxc")
	flag.StringVar(&o.order, "order", "alternate", "hayloft-first, floor-first, or alternate from run to run")
	flag.IntVar(&o.runs, "runs", 1, "how often both are measured")
	flag.IntVar(&o.concurrency, "concurrency", 8, "machines started at a time, by both; Hayloft paces boots besides")
	flag.StringVar(&o.chipset, "chipset", "pc", "of virtual machines: pc, q35 or microvm")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "how long the machines of one measurement may take to answer")
	flag.BoolVar(&o.floor, "floor", true, "measure the floor too")
	flag.BoolVar(&o.json, "json", false, "print JSON instead of a table")
	flag.BoolVar(&o.keep, "keep", false, "leave the last fleet running")
	flag.BoolVar(&o.down, "down", false, "take down what -keep left running, and do nothing else")
	flag.StringVar(&o.binary, "hayloft", "", "the hayloft program (default: built from this source)")
	flag.StringVar(&o.cache, "cache", "", "directory of golden images (default $HAYLOFT_CACHE or hayloft/golden in the user's cache directory)")
	flag.StringVar(&o.dir, "dir", "", "where directories of runs are made (default that for temporary files)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
		os.Exit(1)
	}
}

// outcome is all that is measured, as -json prints it.
type outcome struct {
	Kind        string        `json:"kind"`
	Machines    int           `json:"machines"`
	Concurrency int           `json:"concurrency"`
	Cores       int           `json:"cores"`
	Runs        []measurement `json:"runs"`
	MedianRatio float64       `json:"median_ratio,omitempty"` // of the wall times to the last answer, hayloft / floor
}

// measurement is one run: Hayloft and the floor, one after the other.
type measurement struct {
	First   string  `json:"first"` // which was measured first
	Hayloft result  `json:"hayloft"`
	Floor   *result `json:"floor,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
}

const (
	hayloftFirst = "hayloft-first"
	floorFirst   = "floor-first"
	alternate    = "alternate"
)

func (o options) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("argument %q: want flags only", flag.Arg(0))
	case o.vms < 1 || o.vms > 200:
		return fmt.Errorf("-vms %d: want 1 to 200", o.vms)
	case o.kind != "qemu" && o.kind != "lxc":
		return fmt.Errorf("-kind %q: want qemu or lxc", o.kind)
	case o.order != hayloftFirst && o.order != floorFirst && o.order != alternate:
		return fmt.Errorf("-order %q: want %s, %s or %s", o.order, hayloftFirst, floorFirst, alternate)
	case o.keep && o.binary == "":
		return errors.New("-keep needs -hayloft: a program built for this run goes with it")
	case o.runs < 1 || o.concurrency < 1:
		return errors.New("-runs and -concurrency must be at least 1")
	}
	return nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "storm: "+format+"\n", args...) }

func run(ctx context.Context, o options) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := clearUp(ctx, o.down); err != nil || o.down {
		return err
	}
	scratch, err := os.MkdirTemp(o.dir, "hayloft-storm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o711); err != nil {
		return err
	}
	if o.binary == "" {
		if o.binary, err = build(ctx, scratch); err != nil {
			return err
		}
	}
	set, err := golden.Build(ctx, golden.Options{Dir: o.cache, Log: func(line string) { say("%s", line) }})
	if err != nil {
		return fmt.Errorf("golden images: %w", err)
	}
	b := &bench{options: o, set: set, scratch: scratch}
	result := outcome{Kind: o.kind, Machines: o.vms, Concurrency: o.concurrency, Cores: runtime.NumCPU()}
	for n := range o.runs {
		m, err := b.measure(ctx, n)
		if err != nil {
			return err
		}
		result.Runs = append(result.Runs, m)
	}
	var ratios []float64
	for _, m := range result.Runs {
		ratios = append(ratios, m.Ratio)
	}
	result.MedianRatio = median(ratios)
	if !o.json {
		printTable(result)
		return result.failure()
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return errors.Join(encoder.Encode(result), result.failure())
}

// failure says which machines did not answer.
func (o outcome) failure() error {
	var failed []string
	for _, m := range o.Runs {
		failed = append(failed, m.Hayloft.Failed...)
		if m.Floor != nil {
			failed = append(failed, m.Floor.Failed...)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d machines did not answer: %s", len(failed), strings.Join(failed, "; "))
	}
	return nil
}

func build(ctx context.Context, dir string) (string, error) {
	say("building hayloft")
	binary := filepath.Join(dir, "hayloft")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "hayloft/cmd/hayloft")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build hayloft/cmd/hayloft: %w (or give -hayloft)", err)
	}
	return binary, nil
}

// clearUp takes down what killed runs left, and with kept what -keep left.
func clearUp(ctx context.Context, kept bool) error {
	for _, kind := range []string{hayloftKind, floorKind} {
		runs, err := fleet.Runs(kind, kept)
		if err != nil {
			return err
		}
		for _, r := range runs {
			say("taking down %s, which an earlier run left", r.Name())
			checks, err := r.TakeDown(ctx)
			if err == nil {
				err = nothing(checks)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func nothing(checks []fleet.Check) error {
	if found := fleet.Found(checks); len(found) > 0 {
		return errors.New("left behind:\n    " + strings.Join(found, "\n    "))
	}
	return nil
}
