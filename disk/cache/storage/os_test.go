package storage

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

func open(t *testing.T, access ...Access) (Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := OS(path, access...)
	if err != nil {
		t.Fatal(err)
	}
	return d, path
}

func TestOSFileReadsWhatWasWrittenAndZerosElsewhere(t *testing.T) {
	d, path := open(t)
	f, err := d.Create("log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := bytes.Repeat([]byte{7}, 64<<10)
	if _, err := f.WriteAt(content, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Punch(1<<20+4096, 8192); err != nil {
		t.Fatal(err)
	}
	clear(content[4096:12288])
	if err := f.Punch(1<<20+60<<10, 1<<30); err != nil {
		t.Fatal(err)
	}
	clear(content[60<<10:])
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if size, err := f.Size(); err != nil || size != 1<<20+64<<10 {
		t.Fatalf("punching beyond the end: size %d, %v", size, err)
	}
	again, err := d.Open("log")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	got := make([]byte, len(content))
	if _, err := again.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read back: %v, equal %v", err, bytes.Equal(got, content))
	}
	if n, err := again.ReadAt(got[:512], 100); n != 512 || err != nil || !bytes.Equal(got[:512], make([]byte, 512)) {
		t.Fatalf("hole: %d, %v", n, err)
	}
	if n, err := again.ReadAt(got, 1<<20+63<<10); n != 1024 || err != io.EOF {
		t.Fatalf("beyond the end: %d, %v", n, err)
	}
	if err := f.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(path, "log"), &st); err != nil || st.Size != 4<<20 || st.Mode&0o777 != 0o600 || st.Blocks*512 > 1<<20 {
		t.Fatalf("%v, size %d, mode %o, %d blocks", err, st.Size, st.Mode, st.Blocks)
	}
	if _, ok := again.(Descriptor); !ok {
		t.Fatal("no descriptor")
	}
}

func TestOSFileBlanksWhereItCannotPunch(t *testing.T) {
	d, _ := open(t)
	f, err := d.Create("log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := bytes.Repeat([]byte{7}, 200<<10)
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.(*osFile).blank(1000, 1<<20); err != nil {
		t.Fatal(err)
	}
	clear(content[1000:])
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%v, %d bytes", err, len(got))
	}
}

func TestOSNames(t *testing.T) {
	d, path := open(t)
	for _, name := range []string{"a", "b"} {
		f, err := d.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := os.Mkdir(filepath.Join(path, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Rename("a", "b"); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("absent"); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if names, err := d.Names(); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Fatalf("%v, %v", names, err)
	}
	if _, err := d.Open("a"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("open a: %v", err)
	}
	if err := d.Rename("a", "c"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("rename a: %v", err)
	}
}

func TestOSRefusesWhatLeadsOut(t *testing.T) {
	d, path := open(t)
	if err := os.Symlink("/etc/passwd", filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "../x", "/etc/passwd", "a/b", "a\x00"} {
		_, open := d.Open(name)
		_, create := d.Create(name)
		for op, err := range map[string]error{"open": open, "create": create, "from": d.Rename(name, "x"), "to": d.Rename("x", name), "remove": d.Remove(name)} {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s %q: %v", op, name, err)
			}
		}
	}
	if _, err := d.Open("link"); err == nil {
		t.Error("followed a symbolic link")
	}
	if _, err := d.Create("folder"); err != nil {
		t.Fatal(err)
	}
	if _, err := OS(filepath.Join(path, "absent")); !fault.Is(err, fault.NotFound) {
		t.Errorf("absent directory: %v", err)
	}
	if _, err := OS(filepath.Join(path, "folder")); !fault.Is(err, fault.Invalid) {
		t.Errorf("file as directory: %v", err)
	}
}

func TestOSAccess(t *testing.T) {
	d, path := open(t, Access{Names: []string{"data"}, Mode: 0o440, GID: os.Getgid()})
	mode := func(name string, want fs.FileMode) {
		t.Helper()
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode() != want {
			t.Fatalf("%s: %v, mode %v, want %v", name, err, info.Mode(), want)
		}
	}
	f, err := d.Create("data.new")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	mode("data.new", 0o600)
	if err := d.Rename("data.new", "data"); err != nil {
		t.Fatal(err)
	}
	mode("data", 0o440)
	// Also one who is not root writes to a file that nobody may.
	for _, open := range []func(string) (File, error){d.Open, d.Create} {
		f, err := open("data")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		mode("data", 0o440)
	}
}
