package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hayloft/agent"
	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository/nfs"
	"hayloft/hypervisor/cgroup"
	"hayloft/internal/netspace"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

func newDownCommand() *cobra.Command {
	var f upFlags
	var purge bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Take everything down that `hayloft up` runs: machines, processes, networks",
		Long: "Take everything down that `hayloft up` runs on this machine: all machines are deleted, the processes ended, bridges and rules\n" +
			"removed. Give it the flags that `up` was given. Images and templates stay, unless --purge deletes the state directory too.",
		Example: "  sudo hayloft down\n  sudo hayloft down --purge --netns lab --state-dir /srv/lab --socket /run/lab.sock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return runDown(ctx, f, purge, timeout)
		},
	}
	f.register(cmd)
	f.agent.register(cmd)
	cmd.Flags().BoolVar(&purge, "purge", false, "delete the state directory too, with images, templates and the record of everything")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long machines may take to go")
	return cmd
}

func runDown(ctx context.Context, f upFlags, purge bool, timeout time.Duration) error {
	if os.Geteuid() != 0 {
		return fault.Errorf(fault.Permission, "run it as root")
	}
	if err := netspace.Enter(f.agent.netns); err != nil {
		return err
	}
	if err := f.deleteMachines(ctx, timeout); err != nil {
		return err
	}
	if err := f.endUp(ctx); err != nil {
		return err
	}
	if err := f.clean(ctx, purge); err != nil {
		return err
	}
	if purge {
		return os.RemoveAll(f.stateDir)
	}
	return nil
}

// deleteMachines deletes all machines through the API. Without a server there is nobody to ask; then the
// cleaning of the host says if machines are left.
func (f *upFlags) deleteMachines(ctx context.Context, timeout time.Duration) error {
	c, err := client.New(client.Config{Endpoint: "unix://" + f.socket})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		asked, err := deleteAll(ctx, c)
		if !fault.Is(err, fault.Unavailable) || asked && ctx.Err() != nil {
			return err
		}
		if f.running() { // it is starting the server, perhaps again
			err = answers(ctx, c)
			if err == nil {
				continue
			}
		}
		if !asked && fault.Is(err, fault.Unavailable) {
			return nil
		}
		return err
	}
}

// deleteAll asks for the end of all machines and waits for it; what was asked before can be asked again. asked: the server has said
// which there are.
func deleteAll(ctx context.Context, c *client.Client) (asked bool, err error) {
	vms, err := c.VMs(ctx, false)
	if err != nil {
		return false, err
	}
	var ids []int
	for _, vm := range vms {
		if err := c.Recover(ctx, vm.ID, "delete"); err != nil && !fault.Is(err, fault.NotFound) {
			return true, err
		}
		ids = append(ids, vm.ID)
	}
	gone := func(vm api.VM) (bool, error) { return vm.State == cloud.StateDone && vm.HostID < 0, nil }
	if vms, err = c.WaitVMs(ctx, ids, gone, nil); err != nil {
		for _, vm := range vms {
			if ok, _ := gone(vm); !ok && vm.Error != "" {
				err = fmt.Errorf("%w; vm %d: %s", err, vm.ID, vm.Error)
			}
		}
		return true, fmt.Errorf("machines do not go: %w", err)
	}
	return true, nil
}

// running says whether there is a `hayloft up` of the state directory.
func (f *upFlags) running() bool {
	release, err := f.lock()
	if err == nil {
		release()
	}
	return fault.Is(err, fault.Busy)
}

// endUp ends a running `hayloft up` and returns when it has.
func (f *upFlags) endUp(ctx context.Context) error {
	for ctx.Err() == nil {
		release, err := f.lock()
		if err == nil {
			release()
			return nil
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !fault.Is(err, fault.Busy) {
			return err
		}
		if ended, err := f.terminateUp(ctx); ended || err != nil {
			return err
		}
		select { // it is beginning, or ending: its process id is not there
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// terminateUp ends the process that has the lock; false when it is not known, or is not there any more.
func (f *upFlags) terminateUp(ctx context.Context) (ended bool, err error) {
	pid, ok := f.upProcess()
	if !ok {
		return false, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("hayloft up, process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if again, ok := f.upProcess(); !ok || again != pid || !f.running() { // the number may be of another process by now
		return false, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("hayloft up, process %d: %w", pid, err)
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return true, nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, err
		}
	}
	return false, ctx.Err()
}

// upProcess is the process id in the file that `hayloft up` locks, once it is there.
func (f *upFlags) upProcess() (pid int, ok bool) {
	text, err := os.ReadFile(f.pidFile())
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return pid, err == nil
}

// clean removes what the agent made on this host; with purge also images in volumes, which are not in the state directory.
func (f *upFlags) clean(ctx context.Context, purge bool) error {
	log, err := newLogger("down", "warn")
	if err != nil {
		return err
	}
	if _, err := os.Stat(f.agentDir()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	f.agent.stateDir = f.agentDir()
	f.agent.server = "unix:" + f.fleetSocket()
	cfg, closeDrivers, err := f.agent.config(ctx, log)
	if err != nil {
		return err
	}
	defer closeDrivers()
	if err := agent.Clean(ctx, cfg); err != nil {
		return err
	}
	if err := nfs.Sweep(); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if host, ok := cfg.Way.(interface{ DropVolumes(context.Context) error }); ok && purge {
		if err := host.DropVolumes(ctx); err != nil {
			return err
		}
	}
	groups, err := cgroup.New(f.agent.instance)
	if err == nil {
		err = groups.Remove()
	}
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	for _, name := range []string{"fleet.sock", "agent-token"} {
		if err := os.Remove(filepath.Join(f.stateDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
