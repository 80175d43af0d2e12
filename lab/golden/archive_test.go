package golden

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// drawTree is a tree of directories, files and links with contents of every length modulo four.
func drawTree(t *rapid.T) *tree {
	out := newTree()
	for i := range rapid.IntRange(0, 8).Draw(t, "files") {
		name := fmt.Sprintf("%s/%s%d", rapid.SampledFrom([]string{"a", "a/b", "usr/lib"}).Draw(t, "dir"), rapid.StringMatching(`[a-z]{1,5}`).Draw(t, "name"), i)
		if rapid.Bool().Draw(t, "link") {
			if err := out.link(name, rapid.StringMatching(`[a-z./]{1,9}`).Draw(t, "target")); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := out.file(name, 0o755, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "data")); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.dir("tmp", 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	return out
}

// describe says of each node what an archive must keep.
func describe(t *tree) map[string]string {
	all := map[string]string{}
	for _, n := range t.nodes {
		kind := "file " + string(n.Data)
		switch {
		case n.Mode.IsDir():
			kind = "directory"
		case n.Mode&fs.ModeSymlink != 0:
			kind = "link " + n.Target
		}
		all[n.Path] = fmt.Sprintf("%o %s", n.permissions(), kind)
	}
	return all
}

func readTar(r io.Reader) (map[string]string, error) {
	all := map[string]string{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			return nil, fmt.Errorf("%s belongs to %d:%d %s", h.Name, h.Uid, h.Gid, h.Uname)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		name, kind := h.Name, "file "+string(data)
		switch h.Typeflag {
		case tar.TypeDir:
			name, kind = name[:len(name)-1], "directory"
		case tar.TypeSymlink:
			kind = "link " + h.Linkname
		}
		all[name] = fmt.Sprintf("%o %s", h.Mode, kind)
	}
}

// readCPIO reads the newc format as the kernel's init/initramfs.c does.
func readCPIO(data []byte) (map[string]string, error) {
	all := map[string]string{}
	aligned := func(n int) int { return (n + 3) &^ 3 }
	for {
		if len(data) < 110 || string(data[:6]) != "070701" {
			return nil, errors.New("no header")
		}
		field := func(i int) int {
			v, err := strconv.ParseUint(string(data[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return -1
			}
			return int(v)
		}
		mode, uid, gid, size, length := field(1), field(2), field(3), field(6), field(11)
		if uid != 0 || gid != 0 || length < 1 || len(data) < aligned(110+length)+aligned(size) {
			return nil, errors.New("bad header")
		}
		name := string(data[110 : 110+length-1])
		body := data[aligned(110+length):]
		if name == cpioTrailer {
			return all, nil
		}
		kind := "file " + string(body[:size])
		switch mode &^ 0o7777 {
		case cpioDir:
			kind = "directory"
		case cpioSymlink:
			kind = "link " + string(body[:size])
		}
		all[name] = fmt.Sprintf("%o %s", mode&0o7777, kind)
		data = body[aligned(size):]
	}
}

func TestArchivesKeepTheTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tree := drawTree(t)
		var tarred, cpio bytes.Buffer
		if err := writeTar(&tarred, tree); err != nil {
			t.Fatal(err)
		}
		if err := writeCPIO(&cpio, tree); err != nil {
			t.Fatal(err)
		}
		want := describe(tree)
		got, err := readTar(&tarred)
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("tar: %v, %v, want %v", got, err, want)
		}
		got, err = readCPIO(cpio.Bytes())
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("cpio: %v, %v, want %v", got, err, want)
		}
	})
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestArchivesReportFailedWrites(t *testing.T) {
	tree := newTree()
	if err := tree.file("a", 0o644, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := writeCPIO(fullDisk{}, tree); err == nil {
		t.Error("cpio: no error")
	}
	if err := writeTar(fullDisk{}, tree); err == nil {
		t.Error("tar: no error")
	}
}
