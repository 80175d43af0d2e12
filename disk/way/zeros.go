package way

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// zeroPiece is how many zeros are written at a time where the kernel is not asked to.
const zeroPiece = 1 << 20

// zeroRange has a range of a file or block device read as zeros; the kernel does it where it can.
func zeroRange(f *os.File, offset, length int64) error {
	if length <= 0 {
		return nil
	}
	if head := min(roundUp(offset, sector)-offset, length); head > 0 {
		if err := writeZeros(f, offset, head); err != nil {
			return err
		}
		offset, length = offset+head, length-head
	}
	if whole := length / sector * sector; whole > 0 {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, offset, whole)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			err = writeZeros(f, offset, whole) // EINVAL: larger sectors
		}
		if err != nil {
			return err
		}
		offset, length = offset+whole, length-whole
	}
	return writeZeros(f, offset, length)
}

func writeZeros(f *os.File, offset, length int64) error {
	zeros := make([]byte, min(length, zeroPiece))
	for length > 0 {
		n, err := f.WriteAt(zeros[:min(length, zeroPiece)], offset)
		if err != nil {
			return err
		}
		offset, length = offset+int64(n), length-int64(n)
	}
	return nil
}
