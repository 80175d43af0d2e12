package golden

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
)

// writeTar writes the tree as a POSIX tar archive with numeric owners only.
func writeTar(w io.Writer, t *tree) error {
	out := tar.NewWriter(w)
	for _, n := range t.sorted() {
		h := &tar.Header{Name: n.Path, Mode: int64(n.permissions()), ModTime: epoch, Format: tar.FormatUSTAR}
		switch {
		case n.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, n.Path+"/"
		case n.Mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(n.Data))
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("tar: %s: %w", n.Path, err)
		}
		if _, err := out.Write(n.Data); err != nil {
			return fmt.Errorf("tar: %s: %w", n.Path, err)
		}
	}
	return out.Close()
}

const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioSymlink = 0o120000
	cpioTrailer = "TRAILER!!!"
)

// writeCPIO writes the tree in the "newc" format of the kernel's initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func writeCPIO(w io.Writer, t *tree) error {
	c := cpioWriter{w: w}
	for _, n := range t.sorted() {
		mode, data := n.permissions(), n.Data
		switch {
		case n.Mode.IsDir():
			mode |= cpioDir
		case n.Mode&fs.ModeSymlink != 0:
			mode, data = mode|cpioSymlink, []byte(n.Target)
		default:
			mode |= cpioRegular
		}
		c.entry(n.Path, mode, data)
	}
	c.entry(cpioTrailer, 0, nil)
	return c.err
}

type cpioWriter struct {
	w     io.Writer
	inode uint32
	err   error
}

func (c *cpioWriter) entry(name string, mode uint32, data []byte) {
	c.inode++
	links := 1
	if mode&cpioDir != 0 && mode&cpioRegular == 0 {
		links = 2
	}
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", c.inode, mode, 0, 0, links,
		epoch.Unix(), len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.padded([]byte(header + name + "\x00"))
	c.padded(data)
}

// padded writes data and fills up to a multiple of four bytes.
func (c *cpioWriter) padded(data []byte) {
	if c.err != nil {
		return
	}
	if _, c.err = c.w.Write(data); c.err != nil {
		return
	}
	if rest := len(data) % 4; rest != 0 {
		_, c.err = c.w.Write(make([]byte, 4-rest))
	}
}
