package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"

	"hayloft/disk/blockd"
)

// keeper is a process of this program that keeps the data path's running. It is apart from the one that reads and
// writes: to start a program closes its files there, which waits for whoever answers for them, and may be just that one.
type keeper struct {
	cmd *exec.Cmd
	in  io.Closer
}

const keeperArgument = "keeper"

func startKeeper(binary, stateDir string) (*keeper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	k := &keeper{cmd: exec.Command(self, keeperArgument, binary, stateDir)}
	k.cmd.Stderr = os.Stderr
	if k.in, err = k.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return k, k.cmd.Start()
}

// stop leaves the data path's process alone.
func (k *keeper) stop() error {
	_ = k.in.Close()
	return k.cmd.Wait()
}

// keep is that process, until its standard input ends.
func keep(binary, stateDir string) error {
	k, err := blockd.NewKeeper(blockd.KeeperConfig{Executable: binary, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return k.Run(ctx)
}

// keeperMain makes this program a keeper when it was started as one.
func keeperMain() bool {
	if len(os.Args) != 4 || os.Args[1] != keeperArgument {
		return false
	}
	if err := keep(os.Args[2], os.Args[3]); err != nil {
		slog.Error("keeper", "error", err)
		os.Exit(1)
	}
	return true
}
