package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// cacheOf is the sample of a disk's cache, nil when there is none.
func cacheOf(vm *api.VM, disk int) *api.Cache {
	for i := range vm.Caches {
		if vm.Caches[i].Disk == disk {
			return &vm.Caches[i]
		}
	}
	return nil
}

// cacheMode is the mode that a disk has now, else the one that was asked for.
func cacheMode(vm *api.VM, d *cloud.Disk) string {
	c := cacheOf(vm, d.ID)
	switch {
	case c == nil || c.Mode == "":
		return d.Mode
	case d.Mode != "" && c.Mode != d.Mode:
		return c.Mode + ", then " + d.Mode // it was changed, which holds from the next start on
	case c.Degraded:
		return c.Mode + ", as THRU"
	}
	return c.Mode
}

func cachedText(vm *api.VM, d *cloud.Disk) string {
	c := cacheOf(vm, d.ID)
	if c == nil || c.Total == 0 {
		return ""
	}
	return bytesText(c.Cached) + "/" + bytesText(c.Total)
}

func undrainedText(vm *api.VM, d *cloud.Disk) string {
	if c := cacheOf(vm, d.ID); c != nil && c.Mode != cloud.CacheNone && d.Persistent {
		return bytesText(c.Undrained)
	}
	return ""
}

// drains says whether what the machine has under way is draining.
func drains(vm *api.VM) bool { return strings.HasPrefix(vm.Step, "drain") }

// drainText tells how far a machine's disks are drained, for its state's line.
func drainText(vm *api.VM) string {
	switch {
	case !drains(vm):
		return ""
	case vm.Total > 0:
		return fmt.Sprintf(", %s: %s of %s (%d%%)", vm.Step, bytesText(vm.Done), bytesText(vm.Total), 100*vm.Done/vm.Total)
	}
	return ", " + vm.Step
}

func newVMDiskCacheCommand(a *app) *cobra.Command {
	var change api.DiskCache
	size := ""
	cmd := one("disk-cache VM DISK", "Change how a disk of a machine that is off is cached, from its next start on",
		`hayloft vm disk-cache web-1 0 --mode BACK --cache-size 4G
  hayloft vm disk-cache web-1 1 --mode AROUND --preload AUTO`, nil)
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		if change == (api.DiskCache{}) && size == "" {
			return usageError(cmd, "nothing to change: give --mode, --cache-size or --preload")
		}
		var err error
		if change.SizeMB, err = cacheMegabytes("--cache-size", size); err != nil {
			return err
		}
		if !strings.EqualFold(change.Preload, "AUTO") {
			if change.Preload, err = cacheMegabytes("--preload", change.Preload); err != nil {
				return err
			}
		}
		id, err := machine(ctx, c, args[0])
		if err != nil {
			return err
		}
		disk, err := strconv.Atoi(args[1])
		if err != nil || disk < 0 {
			return fault.Errorf(fault.Invalid, "disk %q: want its id, as vm show tells it", args[1])
		}
		return c.SetDiskCache(ctx, id, disk, change)
	})
	flags := cmd.Flags()
	flags.StringVar(&change.Mode, "mode", "", "CACHE_MODE: NONE, AROUND, THRU, BACK or OFFLINE")
	flags.StringVar(&size, "cache-size", "", "CACHE_SIZE on the host: MB, or with M, G or T; 0 is as much as the image has")
	flags.StringVar(&change.Preload, "preload", "", "PRELOAD_SIZE before it starts: MB, or with M, G or T; AUTO follows the image's boot profile")
	completeWords(cmd, "mode", "NONE", "AROUND", "THRU", "BACK", "OFFLINE")
	completeWords(cmd, "preload", "AUTO", "0")
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}

// cacheMegabytes reads a size that may be 0, or not given.
func cacheMegabytes(flag, text string) (string, error) {
	if text = strings.TrimSpace(text); text == "" || text == "0" {
		return text, nil
	}
	mb, err := megabytes(text)
	if err != nil {
		return "", fault.Errorf(fault.Invalid, "%s: %w", flag, err)
	}
	return strconv.Itoa(mb), nil
}
