package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/blockd"
)

// keeper is a process of this program that keeps the data path's running. It is apart from the one that reads and
// writes: to start a program closes its files there, which waits for whoever answers for them, and may be just that one.
// When that process is killed, it clears away what the run had: nobody would answer for its files any more, and
// whoever met them would wait.
type keeper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

const (
	keeperArgument = "keeper"
	farewell       = "done"
)

func startKeeper(binary, stateDir string) (*keeper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	k := &keeper{cmd: exec.Command(self, keeperArgument, binary, stateDir)}
	k.cmd.Stderr = os.Stderr
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends all that the caller started spares it
	if k.in, err = k.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return k, k.cmd.Start()
}

// stop leaves the data path's process alone.
func (k *keeper) stop() error {
	_, err := io.WriteString(k.in, farewell)
	return errors.Join(err, k.in.Close(), k.cmd.Wait())
}

// keep is that process, until its standard input ends.
func keep(binary, stateDir string) error {
	k, err := blockd.NewKeeper(blockd.KeeperConfig{Executable: binary, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var said []byte
	go func() {
		defer cancel()
		said = farewellOf(os.Stdin, os.Getppid())
	}()
	err = k.Run(ctx)
	<-ctx.Done()
	if string(said) == farewell {
		return err
	}
	dir := filepath.Dir(stateDir)
	for _, pid := range processesOf(dir) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return errors.Join(err, abandon(stateDir), os.RemoveAll(dir))
}

// farewellOf reads what the caller says to its end, or to that of the caller: one that is killed while it waits for
// files has all it had open until it got an answer.
func farewellOf(in *os.File, caller int) []byte {
	said := make(chan []byte, 1)
	go func() { // ends with the process at the latest
		b, _ := io.ReadAll(in)
		said <- b
	}()
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case b := <-said:
			return b
		case <-tick.C:
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", caller))
			if err != nil || bytes.Contains(stat, []byte(") Z ")) {
				return nil
			}
		}
	}
}

// abandon ends the files of a data path whose process is ending.
func abandon(stateDir string) error {
	for end := time.Now().Add(endLimit); ; time.Sleep(20 * time.Millisecond) {
		err := blockd.Abandon(context.Background(), stateDir, "")
		if !fault.Is(err, fault.Busy) || time.Now().After(end) {
			return err
		}
	}
}

// processesOf are those that were started with a path in a directory, but for this one.
func processesOf(dir string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		pid, err := strconv.Atoi(strings.Split(p, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte(dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
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
