package image

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// checkSquashFS has every member listed and every block decompressed, and returns the bytes of all files.
func checkSquashFS(ctx context.Context, o ImportOptions, src *origin) (int64, error) {
	super := make([]byte, 96)
	if err := readFull(src, super, 0); err != nil {
		return 0, err
	}
	if used := binary.LittleEndian.Uint64(super[40:]); used > uint64(src.size) {
		return 0, fault.Errorf(fault.Corrupt, "squashfs %s: truncated: %d bytes of %d", src.name, src.size, used)
	}
	out, err := o.Runner.Run(ctx, command.Cmd{Name: "unsquashfs", Args: []string{"-lln", src.path}})
	if err != nil {
		return 0, squashError(src, err)
	}
	var bytes int64
	members := 0
	for line := range strings.Lines(string(out)) {
		size, err := squashMember(line)
		if err != nil {
			return 0, fault.Errorf(fault.ClassOf(err), "squashfs %s: %w", src.name, err)
		}
		bytes, members = bytes+size, members+1
		if bytes > o.Limits.Size || members > o.Limits.Members {
			return 0, fault.Errorf(fault.Invalid, "squashfs %s: more than the limit of %d bytes or %d members", src.name, o.Limits.Size, o.Limits.Members)
		}
	}
	_, err = o.Runner.Run(ctx, command.Cmd{Name: "unsquashfs", Args: []string{"-q", "-n", "-pf", "/dev/null", src.path}})
	if err != nil {
		return 0, squashError(src, err)
	}
	return bytes, nil
}

// squashMember reads a line like "-rw-r--r-- 0/0   3000000 2026-11-20 06:59 squashfs-root/a".
func squashMember(line string) (size int64, err error) {
	line = strings.TrimRight(line, "\n")
	if line == "" {
		return 0, nil
	}
	_, name, ok := strings.Cut(line, "squashfs-root")
	if !ok {
		return 0, nil // the rest of a name with a newline in it
	}
	name = strings.TrimPrefix(name, "/")
	switch line[0] {
	case 'c', 'b':
		return 0, fault.Errorf(fault.Invalid, "member %q: is a device node", name)
	case '-':
		fields := strings.Fields(line)
		if len(fields) < 3 {
			return 0, fault.Errorf(fault.Corrupt, "member %q: not understood", line)
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || size < 0 {
			return 0, fault.Errorf(fault.Corrupt, "member %q: size %q", name, fields[2])
		}
		return size, nil
	}
	return 0, nil
}

func squashError(src *origin, err error) error {
	var e *command.Error
	if errors.As(err, &e) {
		return fault.Errorf(fault.Corrupt, "squashfs %s: damaged: %w", src.name, err)
	}
	return err
}
