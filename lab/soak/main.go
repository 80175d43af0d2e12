// Command soak keeps the data path of a host busy for minutes, and checks every byte: the real `hayloft blockd` under
// its Keeper, images larger than what may be kept of them, volumes in all modes, files and block devices, while
// exports come and go, modes change, bases are dropped, the repository disappears, and the process is killed. In the
// end everything is settled and compared, and nothing may be left. `make soak` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	binary string
	time   time.Duration
	seed   uint64
	dir    string
	bases  int // lanes of machines with clones
	disks  int // persistent images
	files  bool
	keep   bool
}

func main() {
	if keeperMain() {
		return
	}
	var o options
	minutes := flag.Float64("minutes", 5, "how long")
	flag.StringVar(&o.binary, "hayloft", "bin/hayloft", "the program")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano())%1e9, "of everything that is random, but for the timing")
	flag.StringVar(&o.dir, "dir", "", "where the run's directory is made; its path must be short (default that for temporary files)")
	flag.IntVar(&o.bases, "bases", 6, "exports of bases at a time")
	flag.IntVar(&o.disks, "disks", 5, "persistent images")
	flag.BoolVar(&o.files, "files", true, "export files and block devices too, which root may")
	flag.BoolVar(&o.keep, "keep", false, "keep the directory of a run that fails")
	flag.Parse()
	o.time = time.Duration(*minutes * float64(time.Minute))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second one ends this at once
	err := run(ctx, o, func(line string) { fmt.Println("soak:", line) })
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak: FAILED")
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (o options) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("argument %q: want flags only", flag.Arg(0))
	case o.time < time.Second:
		return fmt.Errorf("-minutes: %v is too short", o.time)
	case o.bases < 1 || o.bases > 64 || o.disks < 1 || o.disks > 64:
		return fmt.Errorf("-bases %d, -disks %d: want 1 to 64", o.bases, o.disks)
	}
	return nil
}
