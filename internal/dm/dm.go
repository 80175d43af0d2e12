// Package dm is the kernel's device mapper through the dmsetup tool. Devices carry a uuid, by which we know our own: what has
// another one is never touched.
package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// SectorSize is the unit of tables, in bytes.
const SectorSize = 512

// Tools runs dmsetup.
type Tools struct{ Runner command.Runner }

// Device is one mapped device.
type Device struct {
	Name, UUID string
	Open       int    // how often it is open, by other devices also
	Node       string // its block device, /dev/dm-N
}

// Linear is a piece of another device; From and Sectors in sectors.
type Linear struct {
	Device        string
	From, Sectors int64
}

// LinearTable puts pieces one behind the other.
func LinearTable(pieces ...Linear) string {
	var lines []string
	at := int64(0)
	for _, p := range pieces {
		lines = append(lines, fmt.Sprintf("%d %d linear %s %d", at, p.Sectors, p.Device, p.From))
		at += p.Sectors
	}
	return strings.Join(lines, "\n")
}

// Path is where a device's node is linked from.
func Path(name string) string { return "/dev/mapper/" + name }

// run runs dmsetup. Where a udev daemon is, dmsetup waits until it has done with a device; else it makes the nodes itself.
func (t Tools) run(ctx context.Context, stdin string, args ...string) (string, error) {
	if _, err := os.Stat("/run/udev/control"); err != nil {
		switch args[0] {
		case "create", "remove", "resume", "rename":
			args = append([]string{args[0], "--noudevsync", "--noudevrules"}, args[1:]...)
		}
	}
	c := command.Cmd{Name: "dmsetup", Args: args}
	if stdin != "" {
		c.Stdin = []byte(stdin + "\n")
	}
	out, err := t.Runner.Run(ctx, c)
	if err == nil {
		return string(out), nil
	}
	var failed *command.Error
	if errors.As(err, &failed) {
		switch {
		case strings.Contains(failed.Stderr, "does not exist"), strings.Contains(failed.Stderr, "No such device or address"):
			err = fault.As(fault.NotFound, err)
		case strings.Contains(failed.Stderr, "busy"):
			err = fault.As(fault.Busy, err)
		case strings.Contains(failed.Stderr, "No such file or directory") && strings.Contains(failed.Stderr, "control"),
			strings.Contains(failed.Stderr, "device-mapper driver"), strings.Contains(failed.Stderr, "unknown target type"):
			err = fault.As(fault.Unsupported, err)
		}
	}
	return "", err
}

// Check says whether the kernel has the device mapper with a target; it loads modules when it must. fault.Unsupported.
func (t Tools) Check(ctx context.Context, target string) error {
	if strings.ContainsAny(target, "/- ") {
		return fault.Errorf(fault.Invalid, "device mapper target %q", target)
	}
	for _, module := range []string{"dm-mod", "dm-" + target} {
		_, _ = t.Runner.Run(ctx, command.Cmd{Name: "modprobe", Args: []string{"-q", "--", module}}) // built in, or the next says
	}
	out, err := t.run(ctx, "", "targets")
	if err != nil {
		return fault.Errorf(fault.Unsupported, "device mapper: %w", err)
	}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == target {
			return nil
		}
	}
	return fault.Errorf(fault.Unsupported, "the kernel has no device mapper target %s", target)
}

// Create makes a device; fault.Exists when the name is taken.
func (t Tools) Create(ctx context.Context, name, uuid, table string) error {
	if _, err := t.Info(ctx, name); !fault.Is(err, fault.NotFound) {
		if err == nil {
			err = fault.Errorf(fault.Exists, "mapped device %s is there already", name)
		}
		return err
	}
	if _, err := t.run(ctx, table, "create", name, "--uuid", uuid); err != nil {
		return fmt.Errorf("mapped device %s: %w", name, err)
	}
	return nil
}

// Info describes a device; fault.NotFound.
func (t Tools) Info(ctx context.Context, name string) (Device, error) {
	out, err := t.run(ctx, "", "info", "-c", "--noheadings", "--separator", "|", "-o", "name,uuid,open,minor", "--", name)
	if err != nil {
		return Device{}, fmt.Errorf("mapped device %s: %w", name, err)
	}
	return parseInfo(strings.TrimSpace(out))
}

func parseInfo(line string) (Device, error) {
	fields := strings.Split(line, "|")
	if len(fields) != 4 {
		return Device{}, fault.Errorf(fault.Corrupt, "dmsetup info says %q", line)
	}
	open, err := strconv.Atoi(fields[2])
	if err != nil {
		return Device{}, fault.Errorf(fault.Corrupt, "dmsetup info says %q", line)
	}
	return Device{Name: fields[0], UUID: fields[1], Open: open, Node: "/dev/dm-" + fields[3]}, nil
}

// List gives the devices whose uuid starts with prefix.
func (t Tools) List(ctx context.Context, prefix string) ([]Device, error) {
	out, err := t.run(ctx, "", "info", "-c", "--noheadings", "--separator", "|", "-o", "name,uuid,open,minor")
	if err != nil {
		return nil, err
	}
	var list []Device
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); !strings.Contains(line, "|") { // No devices found
			continue
		}
		d, err := parseInfo(line)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(d.UUID, prefix) {
			list = append(list, d)
		}
	}
	return list, nil
}

// Table is the table of a device, and Status what its targets say of themselves.
func (t Tools) Table(ctx context.Context, name string) (string, error) {
	out, err := t.run(ctx, "", "table", "--", name)
	return strings.TrimSpace(out), err
}

// Status is what a device's targets say of themselves.
func (t Tools) Status(ctx context.Context, name string) (string, error) {
	out, err := t.run(ctx, "", "status", "--", name)
	return strings.TrimSpace(out), err
}

// Reload gives a device another table, between two of its requests.
func (t Tools) Reload(ctx context.Context, name, table string) error {
	if _, err := t.run(ctx, table, "load", name); err != nil {
		return fmt.Errorf("mapped device %s: %w", name, err)
	}
	// Resuming with a table loaded suspends the old one first, which flushes it.
	if _, err := t.run(ctx, "", "resume", name); err != nil {
		return fmt.Errorf("mapped device %s: %w", name, err)
	}
	return nil
}

// A device may be open by somebody who only passes, such as udev: for passing, or on a slow host as long as udev has work to do
// at all, up to settling, before it counts as in use.
const (
	passing  = 2 * time.Second
	settling = 30 * time.Second
)

// udevWorks says whether udev has events that it has not done with.
func udevWorks() bool {
	_, err := os.Stat("/run/udev/queue")
	return err == nil
}

// Closed waits until a device is open no more, but not for long: fault.Busy. Nothing when there is none.
func (t Tools) Closed(ctx context.Context, name string) error {
	began := time.Now()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		d, err := t.Info(ctx, name)
		switch {
		case fault.Is(err, fault.NotFound), err == nil && d.Open == 0:
			return nil
		case err != nil:
			return err
		case time.Since(began) > passing && !udevWorks(), time.Since(began) > settling:
			return fault.Errorf(fault.Busy, "mapped device %s is open", name)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Remove removes a device with that uuid; nothing when there is none. fault.Busy when it is open, or not ours.
func (t Tools) Remove(ctx context.Context, name, uuid string) error {
	d, err := t.Info(ctx, name)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case d.UUID != uuid:
		return fault.Errorf(fault.Busy, "mapped device %s is not ours: its uuid is %q", name, d.UUID)
	}
	if err := t.Closed(ctx, name); err != nil {
		return err
	}
	_, err = t.run(ctx, "", "remove", "--retry", "--", name)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
