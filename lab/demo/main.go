// Command demo shows the whole of Hayloft on one machine: golden images, a fleet of virtual machines and
// containers made from them, each answering over SSH, a table of what it took, and nothing left in the end. It
// works in a network namespace of its own. `make demo` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"hayloft/lab/fleet"
	"hayloft/lab/golden"
)

const kind = "demo" // of its runs

// options are the demo's flags.
type options struct {
	binary     string
	cache      string
	dir        string
	vms        int
	containers int
	chipset    string
	timeout    time.Duration
	keep       bool
	down       bool
}

func main() {
	var o options
	flag.StringVar(&o.binary, "hayloft", "bin/hayloft", "the program to show")
	flag.StringVar(&o.cache, "cache", "", "directory of golden images (default $HAYLOFT_CACHE or hayloft/golden in the user's cache directory)")
	flag.StringVar(&o.dir, "dir", "", "where the run's directory is made (default that for temporary files)")
	flag.IntVar(&o.vms, "vms", 20, "virtual machines")
	flag.IntVar(&o.containers, "containers", 20, "containers")
	flag.StringVar(&o.chipset, "chipset", "pc", "of the virtual machines: pc, q35 or microvm")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long the machines may take to answer")
	flag.BoolVar(&o.keep, "keep", false, "leave everything running")
	flag.BoolVar(&o.down, "down", false, "take down what was left running, and do nothing else")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second one ends this at once; the next run then clears up
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if flag.NArg() > 0 || o.vms < 0 || o.containers < 0 || o.vms+o.containers == 0 || o.vms+o.containers > 200 {
		return errors.New("want 1 to 200 machines and no arguments")
	}
	if err := clearUp(ctx, o.down); err != nil || o.down {
		return err
	}
	began := time.Now()
	step("golden images")
	set, err := golden.Build(ctx, golden.Options{Dir: o.cache, Log: func(line string) { fmt.Println("   ", line) }})
	if err != nil {
		return fmt.Errorf("golden images: %w", err)
	}
	fmt.Println("    in", set.Dir)
	step("hayloft up, in a network namespace of its own")
	f, err := fleet.Start(ctx, fleet.Config{Binary: o.binary, Kind: kind, Dir: o.dir})
	if err != nil {
		return err
	}
	fmt.Printf("    namespace %s, files in %s\n", f.Name, f.Dir)
	err = show(ctx, f, set, o)
	switch {
	case ctx.Err() != nil:
		err = errors.New("interrupted")
	case err != nil:
		fmt.Fprintf(os.Stderr, "\nlast lines of hayloft's log:\n%s\n", f.Log(15))
	}
	if o.keep && err == nil {
		if err = f.Keep(); err == nil {
			howToLook(f, o.binary)
			return nil
		}
	}
	err = errors.Join(err, takeDown(context.WithoutCancel(ctx), f))
	if err == nil {
		fmt.Printf("\nThe whole demo took %s.\n", short(time.Since(began)))
	}
	return err
}

// show registers, deploys, waits and reports.
func show(ctx context.Context, f *fleet.Fleet, set golden.Set, o options) error {
	step("register the images")
	if err := register(ctx, f, set); err != nil {
		return err
	}
	step("create a network and two templates")
	if err := f.CreateNetwork(ctx); err != nil {
		return err
	}
	shape := fleet.DefaultShape(o.vms+o.containers, runtime.NumCPU())
	shape.Chipset = o.chipset
	if err := f.CreateTemplates(ctx, shape); err != nil {
		return err
	}
	step(fmt.Sprintf("deploy %d virtual machines and %d containers", o.vms, o.containers))
	before, err := f.Usage()
	if err != nil {
		return err
	}
	submitted := time.Now()
	ids, err := f.Deploy(ctx, fleet.ContainerTemplate, o.containers)
	if err != nil {
		return err
	}
	vms, err := f.Deploy(ctx, fleet.VMTemplate, o.vms)
	if err != nil {
		return err
	}
	ids = append(ids, vms...)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	p := newProgress(len(ids), submitted)
	machines, err := f.Follow(ctx, ids, p.update)
	p.close()
	if err != nil {
		return err
	}
	after, err := f.Usage()
	if err != nil {
		return err
	}
	return report(machines, submitted, before, after)
}

// clearUp takes down earlier runs: those that were killed, and with kept those that were left running.
func clearUp(ctx context.Context, kept bool) error {
	runs, err := fleet.Runs(kind, kept)
	if err != nil {
		return err
	}
	for _, r := range runs {
		step("take down " + r.Name() + ", which an earlier run left")
		checks, err := r.TakeDown(ctx)
		if err != nil {
			return err
		}
		if err := proof(checks); err != nil {
			return err
		}
	}
	if kept && len(runs) == 0 {
		fmt.Println("no demo is running")
	}
	return nil
}

func takeDown(ctx context.Context, f *fleet.Fleet) error {
	step("take everything down")
	start := time.Now()
	err := f.Stop(ctx)
	checks, lookErr := f.Leftovers()
	fmt.Printf("    took %s\n", short(time.Since(start)))
	if lookErr == nil {
		lookErr = proof(checks)
	}
	return errors.Join(err, lookErr)
}
