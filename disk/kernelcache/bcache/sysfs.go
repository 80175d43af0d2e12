package bcache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache/local"
	"hayloft/internal/dm"
)

const registerFile = "/sys/fs/bcache/register"

// sysfs is the directory that a mapped device has while it is bcache's.
func sysfs(d dm.Device) string { return filepath.Join("/sys/block", filepath.Base(d.Node), "bcache") }

func setFile(dir, name, value string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(value), 0)
}

func getFile(dir, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(text)), err
}

// register gives a device to bcache. udev, which does so with all that have a superblock, may be before us.
func register(ctx context.Context, d dm.Device) error {
	var last error
	err := poll(ctx, "bcache does not take "+d.Name, func() (bool, error) {
		if _, err := os.Stat(sysfs(d)); err == nil {
			return true, nil
		}
		last = os.WriteFile(registerFile, []byte(d.Node+"\n"), 0)
		_, err := os.Stat(sysfs(d))
		return err == nil, nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// running waits until the backing device has its cache, and gives the device that bcache makes of the two.
func running(ctx context.Context, back dm.Device) (string, error) {
	var made string
	err := poll(ctx, "bcache does not put "+back.Name+" and its cache together", func() (bool, error) {
		state, err := getFile(sysfs(back), "state")
		if err != nil {
			return false, err
		}
		if made, err = bcacheOf(back); err != nil {
			return false, nil
		}
		return state == "clean" || state == "dirty", nil
	})
	return made, err
}

// bcacheOf gives the device that bcache makes of a backing device.
func bcacheOf(back dm.Device) (string, error) {
	link, err := os.Readlink(filepath.Join(sysfs(back), "dev"))
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.As(fault.NotFound, err)
	}
	return "/dev/" + filepath.Base(link), err
}

// unregister has bcache let go of a device; what is dirty stays where it is. Nothing when it has not got it.
func unregister(ctx context.Context, d dm.Device) error {
	return poll(ctx, "bcache does not let go of "+d.Name, func() (bool, error) {
		if _, err := os.Stat(sysfs(d)); errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		// A backing device has stop itself, a cache its set.
		err := setFile(sysfs(d), "stop", "1")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			err = setFile(filepath.Join(sysfs(d), "set"), "stop", "1")
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // gone meanwhile
		}
		return false, err
	})
}

const (
	// normalPercent is how much of the cache is dirty before it hurries, and no reason to rest when it is less.
	normalPercent = "10"
	normalDelay   = "1" // seconds between two looks for what is dirty, so that a Flush need not wait for longer
)

// settle has a cache keep everything, whatever it thinks of large or many requests, in its mode.
func settle(back dm.Device, h local.Header) error {
	dir := sysfs(back)
	set := filepath.Join("/sys/fs/bcache", dashed(h.Set))
	for _, one := range [][3]string{
		{dir, "cache_mode", modeNames[h.Mode]}, {dir, "sequential_cutoff", "0"}, {dir, "writeback_delay", normalDelay},
		{dir, "writeback_percent", normalPercent}, {set, "congested_read_threshold_us", "0"}, {set, "congested_write_threshold_us", "0"},
	} {
		if err := setFile(one[0], one[1], one[2]); err != nil {
			return err
		}
	}
	return nil
}

// modeOf reads a line as "writethrough [writeback] writearound none".
func modeOf(line string) (cache.Mode, error) {
	for mode, name := range modeNames {
		if strings.Contains(line, "["+name+"]") {
			return mode, nil
		}
	}
	return "", fault.Errorf(fault.Corrupt, "cache_mode is %q", line)
}

// parseSize reads what the kernel makes of a number of bytes: 512, 4.0k, 1.5M.
func parseSize(text string) (int64, error) {
	number := strings.TrimRight(text, "kMGTPE")
	unit := int64(1)
	if suffix := text[len(number):]; len(suffix) == 1 {
		unit = 1 << (10 * (1 + strings.Index("kMGTPE", suffix)))
	} else if suffix != "" {
		return 0, fault.Errorf(fault.Corrupt, "size %q", text)
	}
	whole, err := strconv.ParseFloat(number, 64)
	if err != nil || !(whole >= 0 && whole*float64(unit) < 1<<62) {
		return 0, fault.Errorf(fault.Corrupt, "size %q", text)
	}
	return int64(whole * float64(unit)), nil
}

// parseUsed reads priority_stats, "Unused: 87%" and other lines, and gives the percentage that holds data of the source.
func parseUsed(text string) (int64, error) {
	used := int64(100)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		if name != "Unused" && name != "Metadata" {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), "%"), 10, 64)
		if err != nil || n < 0 || n > 100 {
			return 0, fault.Errorf(fault.Corrupt, "priority_stats has %q", line)
		}
		used -= n
	}
	return max(used, 0), nil
}
