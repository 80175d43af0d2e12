package lvm

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

var longEnough = regexp.MustCompile(`(?i)matches existing size|not larger than existing size`)

// zeroStep is what is zeroed between two looks at whether it should end, in bytes.
const zeroStep = 64 << 20

// Zero makes bytes of a block device of that host zeros, by the device itself where it can (write zeroes), else by writing
// them. Offset and length are multiples of 512. It ends with ctx. fault.Busy when somebody has the device for himself.
func (t Tools) Zero(ctx context.Context, path string, offset, length int64) error {
	if !strings.HasPrefix(path, "/") || offset < 0 || length < 0 || offset%sector != 0 || length%sector != 0 {
		return fault.Errorf(fault.Invalid, "zero %s: %d bytes at %d", path, length, offset)
	}
	if length == 0 {
		return nil
	}
	_, err := t.program(ctx, "blkdiscard", "--zeroout", "--offset", strconv.FormatInt(offset, 10), "--length", strconv.FormatInt(length, 10),
		"--step", strconv.Itoa(zeroStep), path)
	if err != nil {
		return fmt.Errorf("zero %d bytes at %d of %s: %w", length, offset, path, err)
	}
	return nil
}
