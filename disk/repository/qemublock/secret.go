package qemublock

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Secret is a password or key. It shows in no log and no error.
type Secret string

func (Secret) String() string       { return "(secret)" }
func (Secret) GoString() string     { return "(secret)" }
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

const maxSecret = 16 << 10 // bytes

// SecretFile reads a file that only its owner can read, without the line break at its end. option is the name of the
// attribute that names it, for errors.
func SecretFile(option, path string) (Secret, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fault.Errorf(fault.Permission, "%s: %w", option, err)
	}
	defer file.Close()
	fi, err := file.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", option, err)
	case !fi.Mode().IsRegular():
		return "", fault.Errorf(fault.Invalid, "%s %s is not a file", option, path)
	case fi.Mode().Perm()&0o077 != 0:
		return "", fault.Errorf(fault.Permission, "%s %s has mode %04o: others can read it, 0600 is wanted", option, path, fi.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", option, err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 || len(b) > maxSecret {
		return "", fault.Errorf(fault.Invalid, "%s %s has %d bytes, 1 to %d are wanted", option, path, len(b), maxSecret)
	}
	return Secret(b), nil
}
