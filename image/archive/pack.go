package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// Pack writes the directory tree that overlayfs shows for upper on top of lower, either of which may be "", as a
// plain tar to w: whiteouts hide, opaque directories replace. Sockets and device nodes are left out and
// returned. What only the kernel can merge (redirected directories, files of attributes alone) is fault.Unsupported.
func Pack(ctx context.Context, w io.Writer, lower, upper string) (skipped []string, err error) {
	return pack(ctx, w, false, lower, upper)
}

// PackOwn writes the tree of an upper directory as it is, whiteouts and overlayfs's attributes with it, for
// Unpack with Options.Own.
func PackOwn(ctx context.Context, w io.Writer, upper string) (skipped []string, err error) {
	return pack(ctx, w, true, upper)
}

func pack(ctx context.Context, w io.Writer, own bool, layers ...string) ([]string, error) {
	p := packer{ctx: ctx, tar: tar.NewWriter(w), own: own, inodes: map[inode]string{}}
	for _, dir := range layers { // lowest first
		if dir == "" {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		p.layers = append(p.layers, root)
	}
	all := make([]int, len(p.layers))
	for i := range all {
		all[i] = i
	}
	if err := p.directory(".", all); err != nil {
		return nil, err
	}
	return p.skipped, p.tar.Close()
}

type inode struct {
	layer    int
	dev, ino uint64
}

type packer struct {
	ctx     context.Context
	tar     *tar.Writer
	own     bool
	layers  []*os.Root // lowest first
	inodes  map[inode]string
	skipped []string
}

// directory writes directory name, which is merged from the given layers, highest last.
func (p *packer) directory(name string, layers []int) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	top := layers[len(layers)-1]
	fi, err := p.layers[top].Lstat(name)
	if err != nil {
		return err
	}
	if err := p.write(name, top, fi); err != nil {
		return err
	}
	type entry struct {
		layers []int
		kind   fs.FileMode
		ended  bool // a layer has something that hides those below
	}
	entries := map[string]*entry{}
	for _, layer := range slices.Backward(layers) {
		list, err := readDir(p.layers[layer], name)
		if err != nil {
			return err
		}
		for _, d := range list {
			e := entries[d.Name()]
			if e == nil {
				e = &entry{kind: d.Type()}
				entries[d.Name()] = e
			} else if e.ended = e.ended || e.kind != fs.ModeDir || d.Type() != fs.ModeDir; e.ended {
				continue
			}
			e.layers = slices.Insert(e.layers, 0, layer)
		}
		opaque, err := p.opaque(layer, name)
		if err != nil {
			return err
		}
		if opaque && !p.own {
			break
		}
	}
	names := make([]string, 0, len(entries))
	for n := range entries {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if err := p.entry(path.Join(name, n), entries[n].layers, entries[n].kind); err != nil {
			return err
		}
	}
	return nil
}

func readDir(root *os.Root, name string) ([]fs.DirEntry, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

func (p *packer) entry(name string, layers []int, kind fs.FileMode) error {
	if kind == fs.ModeDir {
		return p.directory(name, layers)
	}
	top := layers[len(layers)-1]
	fi, err := p.layers[top].Lstat(name)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode()&fs.ModeDevice != 0 && !p.own {
		if fi.Mode()&fs.ModeCharDevice == 0 || st.Rdev != 0 { // 0/0 is a whiteout
			p.skipped = append(p.skipped, name)
		}
		return nil
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		p.skipped = append(p.skipped, name)
		return nil
	}
	return p.write(name, top, fi)
}

// write writes one member; files with content, further names of one file as hard links.
func (p *packer) write(name string, layer int, fi fs.FileInfo) error {
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		var err error
		if link, err = p.layers[layer].Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h.Format, h.Uname, h.Gname = tar.FormatPAX, "", ""
	h.Name = "./" + name
	if name == "." {
		h.Name = "./"
	} else if fi.IsDir() {
		h.Name += "/"
	}
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode().IsRegular() && st.Nlink > 1 {
		key := inode{layer, uint64(st.Dev), st.Ino}
		if first, ok := p.inodes[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tar.WriteHeader(h)
		}
		p.inodes[key] = h.Name
	}
	if !fi.Mode().IsRegular() && !fi.IsDir() {
		return p.tar.WriteHeader(h)
	}
	f, err := p.layers[layer].Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.attributes(h, name, f); err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if fi.IsDir() {
		return nil
	}
	if _, err := io.Copy(p.tar, io.LimitReader(&patient{p.ctx, f}, h.Size)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// patient ends long copies with the context.
type patient struct {
	ctx context.Context
	r   io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}

func (p *packer) attributes(h *tar.Header, name string, f *os.File) error {
	attrs, err := listAttributes(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, attr := range attrs {
		if isOverlayAttr(attr) && !p.own {
			switch attr[strings.LastIndex(attr, ".")+1:] {
			case "redirect", "metacopy":
				return fault.Errorf(fault.Unsupported, "%s: has %s, which only the kernel can merge", name, attr)
			}
			continue
		}
		if strings.HasPrefix(attr, "security.") && attr != "security.capability" || strings.HasPrefix(attr, "trusted.") && !isOverlayAttr(attr) {
			continue
		}
		value, err := getAttribute(f, attr)
		if err != nil {
			return fmt.Errorf("%s: attribute %s: %w", name, attr, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+attr] = string(value)
	}
	return nil
}

// opaque reports whether a directory hides what is below it.
func (p *packer) opaque(layer int, name string) (bool, error) {
	d, err := p.layers[layer].Open(name)
	if err != nil {
		return false, err
	}
	defer d.Close()
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if value, err := getAttribute(d, attr); err == nil && string(value) == "y" {
			return true, nil
		}
	}
	return false, nil
}

func listAttributes(f *os.File) ([]string, error) {
	buf := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(int(f.Fd()), buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
}

func getAttribute(f *os.File, name string) ([]byte, error) {
	n, err := unix.Fgetxattr(int(f.Fd()), name, nil)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = unix.Fgetxattr(int(f.Fd()), name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
