package path

import "os"

// withFD runs f with a file's descriptor, which stays that file's until f returns, whoever closes the file meanwhile: those
// who give up on storage that hangs do. It fails with os.ErrClosed once that has happened.
func withFD(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = f(int(fd)) }); err != nil {
		return err
	}
	return result
}
