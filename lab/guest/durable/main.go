// Command durable finds out whether a block device or a file keeps what it acknowledged, over a power cut of the kernel
// guest.
//
//	durable write -path P -size BYTES -seed N [-nosync]
//	durable verify -path P -size BYTES -seed N -synced GENERATION
//
// The writer changes random sectors, generation by generation, makes each generation durable (fsync) and then prints
// its number, a line each. The verifier, told of the last number that came out, finds in each sector what that
// generation left, or something newer that the writer wrote; anything else is a loss and makes it fail.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "durable:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || args[0] != "write" && args[0] != "verify" {
		return fmt.Errorf("usage: durable write|verify -path P -size BYTES -seed N")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	path := flags.String("path", "", "block device or file")
	size := flags.Int64("size", 8<<20, "bytes of it that are used")
	seed := flags.Uint64("seed", 1, "says which sectors change when")
	synced := flags.Int64("synced", 0, "verify: the last generation that came out")
	nosync := flags.Bool("nosync", false, "write: make nothing durable, yet say so")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *size < batch*sector || *size%sector != 0 {
		return fmt.Errorf("size %d: want a multiple of %d, at least %d", *size, sector, batch*sector)
	}
	p := plan{seed: *seed, sectors: *size / sector}
	mode := os.O_RDONLY
	if args[0] == "write" {
		mode = os.O_RDWR | os.O_CREATE
	}
	file, err := os.OpenFile(*path, mode, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if args[0] == "write" {
		return p.write(file, !*nosync, func(generation int64) error {
			_, err := fmt.Println(generation)
			return err
		}, nil)
	}
	found, err := p.verify(file, *synced)
	if err != nil {
		return err
	}
	fmt.Printf("generation %d and before are there, and %d sectors of later ones\n", *synced, found)
	return nil
}
