package golden

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// epoch is the time stamp of every file, so that the same packages give the same archives.
var epoch = time.Unix(1700000000, 0).UTC()

// node is one directory, regular file or symbolic link. All belong to root.
type node struct {
	Path   string      // slash-separated, relative to the root, clean
	Mode   fs.FileMode // type (ModeDir, ModeSymlink or none) and permissions
	Data   []byte      // content of a regular file
	Target string      // of a symbolic link
}

// permissions are the lower twelve bits of a Unix mode.
func (n node) permissions() uint32 {
	bits := uint32(n.Mode.Perm())
	if n.Mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// tree is a file system in memory. Writing images from it instead of from a directory needs no root for
// ownership, and no write ever follows a link into the host.
type tree struct {
	nodes map[string]node
}

func newTree() *tree { return &tree{nodes: map[string]node{}} }

func (t *tree) add(n node) error {
	n.Path = strings.TrimPrefix(path.Clean("/"+n.Path), "/")
	if n.Path == "" {
		return nil
	}
	if old, ok := t.nodes[n.Path]; ok && !(old.Mode.IsDir() && n.Mode.IsDir()) {
		return fmt.Errorf("%s: in the tree twice", n.Path)
	}
	for dir := path.Dir(n.Path); dir != "."; dir = path.Dir(dir) {
		parent, ok := t.nodes[dir]
		if ok && !parent.Mode.IsDir() {
			return fmt.Errorf("%s: its parent %s is not a directory", n.Path, dir)
		}
		if !ok {
			t.nodes[dir] = node{Path: dir, Mode: fs.ModeDir | 0o755}
		}
	}
	t.nodes[n.Path] = n
	return nil
}

func (t *tree) dir(name string, perm fs.FileMode) error {
	return t.add(node{Path: name, Mode: fs.ModeDir | perm})
}

func (t *tree) file(name string, perm fs.FileMode, data []byte) error {
	return t.add(node{Path: name, Mode: perm, Data: data})
}

func (t *tree) link(name, target string) error {
	return t.add(node{Path: name, Mode: fs.ModeSymlink | 0o777, Target: target})
}

// sorted returns all nodes, parents before children.
func (t *tree) sorted() []node {
	all := make([]node, 0, len(t.nodes))
	for _, n := range t.nodes {
		all = append(all, n)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Path < all[j].Path })
	return all
}

// stage writes the tree below dir, which must be empty: programs that make file systems read it there.
func (t *tree) stage(dir string) error {
	all := t.sorted()
	for _, n := range all {
		if err := stageNode(filepath.Join(dir, filepath.FromSlash(n.Path)), n); err != nil {
			return err
		}
	}
	// Children first, or creating them would touch their parents again.
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Mode&fs.ModeSymlink != 0 {
			continue
		}
		if err := os.Chtimes(filepath.Join(dir, filepath.FromSlash(all[i].Path)), epoch, epoch); err != nil {
			return err
		}
	}
	return os.Chtimes(dir, epoch, epoch)
}

func stageNode(name string, n node) error {
	switch {
	case n.Mode.IsDir():
		if err := os.Mkdir(name, 0o700); err != nil {
			return err
		}
		return os.Chmod(name, n.Mode.Perm()|n.Mode&fs.ModeSticky)
	case n.Mode&fs.ModeSymlink != 0:
		return os.Symlink(n.Target, name)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(n.Data)
	if chmod := f.Chmod(n.Mode.Perm()); err == nil {
		err = chmod
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
