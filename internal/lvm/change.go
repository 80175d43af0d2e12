package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

// sector is what sizes are multiples of in commands.
const sector = 512

func bytesArg(n int64) string { return strconv.FormatInt((n+sector-1)/sector*sector, 10) + "b" }

// New is a logical volume to create. Exactly these kinds: thick (Size), thin (Size and Pool), thin snapshot (Origin),
// copy-on-write snapshot of a thick volume (Origin, and Size for what may change).
type New struct {
	Group, Name string
	Size        int64 // bytes, rounded up to whole extents
	Pool        string
	Origin      string
	Chunk       int64 // bytes that a copy-on-write snapshot copies at once, see SnapshotSpace; 0: LVM's default
	Tags        []string
	// Private keeps it from being activated by anybody who does not ask for just that (activation skip).
	Private bool
	// Inactive leaves it without a device.
	Inactive bool
}

// Create makes a logical volume, active unless Inactive. Nothing is wiped: a thick one reads as what was on the disks
// before (see Zero), a thin one as zeros. fault.Exists when the name is taken; fault.OutOfSpace with what was needed and
// what is free, in bytes.
func (t Tools) Create(ctx context.Context, n New) error {
	if err := n.check(); err != nil {
		return err
	}
	args := []string{"-y", "-n", n.Name}
	for _, tag := range n.Tags {
		args = append(args, "--addtag", tag)
	}
	switch {
	case n.Private && n.Inactive:
		args = append(args, "-k", "y", "-a", "n")
	case n.Private:
		args = append(args, "-k", "y", "-K", "-a", "y")
	case n.Inactive:
		args = append(args, "-k", "n", "-a", "n")
	default:
		args = append(args, "-k", "n", "-a", "y")
	}
	switch {
	case n.Origin != "" && n.Size > 0:
		if n.Chunk > 0 {
			args = append(args, "-c", strconv.FormatInt(n.Chunk>>10, 10)+"k")
		}
		args = append(args, "-s", "-L", bytesArg(n.Size), n.Group+"/"+n.Origin)
	case n.Origin != "":
		args = append(args, "-s", n.Group+"/"+n.Origin)
	case n.Pool != "":
		args = append(args, "-W", "n", "--type", "thin", "-V", bytesArg(n.Size), "--thinpool", n.Pool, n.Group)
	default:
		args = append(args, "-W", "n", "-Z", "n", "--type", "linear", "-L", bytesArg(n.Size), n.Group)
	}
	if err := t.change(ctx, "lvcreate", args...); err != nil {
		return t.explain(ctx, n.Group, n.Name, err)
	}
	return nil
}

func (n New) check() error {
	if err := CheckVolume(n.Group, n.Name); err != nil {
		return err
	}
	for _, other := range []string{n.Pool, n.Origin} {
		if other == "" {
			continue
		}
		if err := checkName("logical volume", other); err != nil {
			return err
		}
	}
	for _, tag := range n.Tags {
		if err := CheckTag(tag); err != nil {
			return fmt.Errorf("logical volume %s/%s: %w", n.Group, n.Name, err)
		}
	}
	if n.Size < 0 || n.Size == 0 && n.Origin == "" || n.Pool != "" && n.Origin != "" {
		return fault.Errorf(fault.Invalid, "logical volume %s/%s: size %d, pool %q, origin %q make none", n.Group, n.Name, n.Size, n.Pool, n.Origin)
	}
	return nil
}

// explain puts the volume and, for lacking space, bytes into an error.
func (t Tools) explain(ctx context.Context, group, name string, err error) error {
	var e *Error
	if errors.As(err, &e) && e.class == fault.OutOfSpace {
		if g, vgErr := t.Group(context.WithoutCancel(ctx), group); vgErr == nil {
			needed, free := "more", g.Free
			if e.extents {
				needed = strconv.FormatInt(e.needed*g.Extent, 10) + " bytes"
			}
			return fault.Errorf(fault.OutOfSpace, "logical volume %s/%s: needs %s, %d are free in the group: %w", group, name, needed, free, err)
		}
	}
	return fmt.Errorf("logical volume %s/%s: %w", group, name, err)
}

// Remove removes logical volumes, one after the other, even when one of them fails; fault.Busy for one that is open for
// longer than some seconds, fault.NotFound.
func (t Tools) Remove(ctx context.Context, group string, names ...string) error {
	args := []string{"-y"}
	for _, name := range names {
		if err := CheckVolume(group, name); err != nil {
			return err
		}
		args = append(args, group+"/"+name)
	}
	if len(names) == 0 {
		return nil // lvremove has no such mercy
	}
	return t.explained(ctx, group, strings.Join(names, " "), "lvremove", args...)
}

func (t Tools) explained(ctx context.Context, group, name, tool string, args ...string) error {
	if err := t.change(ctx, tool, args...); err != nil {
		return t.explain(ctx, group, name, err)
	}
	return nil
}

// Rename renames a logical volume, open or not; fault.Exists, fault.NotFound.
func (t Tools) Rename(ctx context.Context, group, from, to string) error {
	if err := errors.Join(CheckVolume(group, from), CheckVolume(group, to)); err != nil {
		return err
	}
	return t.explained(ctx, group, from, "lvrename", group, from, to)
}

// Extend makes a logical volume longer, to size bytes rounded up to whole extents; the new end is not wiped. It does
// nothing for one that is as long. fault.OutOfSpace.
func (t Tools) Extend(ctx context.Context, group, name string, size int64) error {
	if err := CheckVolume(group, name); err != nil {
		return err
	}
	err := t.explained(ctx, group, name, "lvextend", "-L", bytesArg(size), group+"/"+name)
	var e *Error
	if errors.As(err, &e) && longEnough.MatchString(e.Message) {
		return nil
	}
	return err
}

// Retag adds and removes tags of logical volumes, each in one step. Those that are there, or not, do no harm.
func (t Tools) Retag(ctx context.Context, group string, names, add, remove []string) error {
	var args []string
	for _, tag := range remove {
		args = append(args, "--deltag", tag)
	}
	for _, tag := range add {
		args = append(args, "--addtag", tag)
	}
	if len(args) == 0 || len(names) == 0 {
		return nil
	}
	for _, tag := range slices.Concat(add, remove) {
		if err := CheckTag(tag); err != nil {
			return fmt.Errorf("logical volume %s/%s: %w", group, names[0], err)
		}
	}
	for _, name := range names {
		if err := CheckVolume(group, name); err != nil {
			return err
		}
		args = append(args, group+"/"+name)
	}
	return t.explained(ctx, group, strings.Join(names, " "), "lvchange", args...)
}

// Activate gives a logical volume its device, also a private one.
func (t Tools) Activate(ctx context.Context, group, name string) error {
	if err := CheckVolume(group, name); err != nil {
		return err
	}
	return t.explained(ctx, group, name, "lvchange", "-a", "y", "-K", group+"/"+name)
}

// Deactivate takes the device away; fault.Busy when it is open.
func (t Tools) Deactivate(ctx context.Context, group, name string) error {
	if err := CheckVolume(group, name); err != nil {
		return err
	}
	return t.explained(ctx, group, name, "lvchange", "-a", "n", group+"/"+name)
}

// Resume brings a device that LVM left suspended when it died back to what the group says about it.
func (t Tools) Resume(ctx context.Context, group, name string) error {
	if err := CheckVolume(group, name); err != nil {
		return err
	}
	return t.explained(ctx, group, name, "lvchange", "--refresh", group+"/"+name)
}

// MakeNode makes the device node and link of an active logical volume where udev did not.
func (t Tools) MakeNode(ctx context.Context, group, name string) error {
	if err := CheckVolume(group, name); err != nil {
		return err
	}
	return t.explained(ctx, group, name, "vgmknodes", group+"/"+name)
}
