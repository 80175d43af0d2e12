package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/lab/labtest"
)

var generous = Options{Name: "test", Size: 1 << 30, Members: 1000}

func pack1(t *testing.T, own bool, lower, upper string) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	if own {
		_, err = PackOwn(context.Background(), &b, upper)
	} else {
		_, err = Pack(context.Background(), &b, lower, upper)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func names(t *testing.T, b []byte) map[string]string {
	t.Helper()
	all := map[string]string{}
	_, err := Walk(context.Background(), bytes.NewReader(b), Options{Name: "x", Size: 1 << 30, Members: 1000, Own: true}, func(m Member, r io.Reader) error {
		content, err := io.ReadAll(r)
		all[m.Path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func put(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestPackAndUnpackKeepTheTree(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	put(t, src+"/bin/su", "su", 0o755|os.ModeSetuid)
	put(t, src+"/.hidden", "h", 0o600)
	put(t, src+"/ro/file", "r", 0o444)
	if err := os.Symlink("/bin/su", src+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(src+"/bin/su", src+"/bin/su2"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(src+"/pipe", 0o640); err != nil {
		t.Fatal(err)
	}
	noted := unix.Setxattr(src+"/.hidden", "user.note", []byte("x"), 0)
	if noted != nil && !errors.Is(noted, unix.EOPNOTSUPP) { // some file systems have none
		t.Fatal(noted)
	}
	if err := os.Chmod(src+"/ro", 0o555); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(src+"/ro", 0o755)
	defer os.Chmod(dst+"/ro", 0o755)
	if _, err := Unpack(context.Background(), bytes.NewReader(pack1(t, false, src, "")), dst, generous, nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"", "bin", "bin/su", ".hidden", "ro", "ro/file", "pipe"} {
		a, err1 := os.Lstat(filepath.Join(src, p))
		b, err2 := os.Lstat(filepath.Join(dst, p))
		if err1 != nil || err2 != nil || a.Mode() != b.Mode() || a.Mode().IsRegular() && a.Size() != b.Size() {
			t.Errorf("%s: %v %v, %v %v", p, a, b, err1, err2)
		} else if p != "pipe" && !a.ModTime().Equal(b.ModTime()) {
			t.Errorf("%s: times %v, %v", p, a.ModTime(), b.ModTime())
		}
	}
	if l, err := os.Readlink(dst + "/link"); l != "/bin/su" {
		t.Error(l, err)
	}
	a, _ := os.Stat(dst + "/bin/su")
	b, _ := os.Stat(dst + "/bin/su2")
	if !os.SameFile(a, b) {
		t.Error("hard link became a copy")
	}
	buf := make([]byte, 10)
	if n, err := unix.Getxattr(dst+"/.hidden", "user.note", buf); noted == nil && (err != nil || string(buf[:n]) != "x") {
		t.Error("attribute", err)
	}
}

func TestPackMergesLikeOverlayfs(t *testing.T) {
	labtest.Root(t)
	lower, upper := t.TempDir(), t.TempDir()
	put(t, lower+"/keep", "l", 0o644)
	put(t, lower+"/changed", "l", 0o644)
	put(t, lower+"/gone", "l", 0o644)
	put(t, lower+"/dir/old", "l", 0o644)
	put(t, lower+"/dir/gone", "l", 0o644)
	put(t, lower+"/replaced/old", "l", 0o644)
	put(t, upper+"/changed", "upper", 0o644)
	put(t, upper+"/dir/new", "u", 0o644)
	put(t, upper+"/replaced/new", "u", 0o644)
	for _, p := range []string{"/gone", "/dir/gone"} {
		if err := unix.Mknod(upper+p, unix.S_IFCHR, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(upper+"/null", unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(upper+"/replaced", "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	skipped, err := Pack(context.Background(), &b, lower, upper)
	if err != nil || len(skipped) != 1 || skipped[0] != "null" {
		t.Fatalf("skipped %v, %v", skipped, err)
	}
	got := names(t, b.Bytes())
	want := map[string]string{".": "", "keep": "l", "changed": "upper", "dir": "", "dir/old": "l", "dir/new": "u", "replaced": "", "replaced/new": "u"}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	for name, content := range want {
		if c, ok := got[name]; !ok || c != content {
			t.Errorf("%s: %q, %v", name, c, ok)
		}
	}
	// As it is: whiteouts and opaque marks come back.
	dst := t.TempDir()
	own := generous
	own.Own = true
	if _, err := Unpack(context.Background(), bytes.NewReader(pack1(t, true, "", upper)), dst, own, nil); err != nil {
		t.Fatal(err)
	}
	again, before := pack1(t, false, lower, dst), names(t, b.Bytes())
	if after := names(t, again); len(after) != len(before) {
		t.Errorf("after stash %v, before %v", after, before)
	}
	// A stranger's archive may not have them.
	if _, err := Walk(context.Background(), bytes.NewReader(pack1(t, true, "", upper)), generous, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("stranger: %v", err)
	}
	if err := unix.Setxattr(upper+"/dir", "trusted.overlay.redirect", []byte("/x"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(context.Background(), io.Discard, lower, upper); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "dir") {
		t.Errorf("redirect: %v", err)
	}
}

func TestUnpackKeepsOwnersAndCapabilities(t *testing.T) {
	labtest.Root(t)
	src, dst := t.TempDir(), t.TempDir()
	put(t, src+"/ping", "p", 0o4755)
	if err := os.Chown(src+"/ping", 1234, 5678); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(src+"/ping", 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(src+"/ping", "security.capability", capability, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(context.Background(), bytes.NewReader(pack1(t, false, src, "")), dst, generous, nil); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dst+"/ping", &st); err != nil || st.Uid != 1234 || st.Gid != 5678 || st.Mode&0o7777 != 0o4755 {
		t.Errorf("%d:%d %o %v", st.Uid, st.Gid, st.Mode, err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(dst+"/ping", "security.capability", buf); err != nil || !bytes.Equal(buf[:n], capability) {
		t.Errorf("capability %v %v", buf[:max(0, n)], err)
	}
}

// FuzzUnpack: whatever the archive says, nothing appears outside of the directory.
func FuzzUnpack(f *testing.F) {
	for _, h := range []tar.Header{
		{Name: "a/b", Size: 3, Mode: 0o644, Typeflag: tar.TypeReg}, {Name: "../x", Size: 3, Typeflag: tar.TypeReg},
		{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, {Name: "h", Linkname: "a/b", Typeflag: tar.TypeLink},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		_ = w.WriteHeader(&h)
		if h.Size > 0 {
			_, _ = w.Write([]byte("abc"))
		}
		_ = w.Close()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		inner := filepath.Join(outer, "in")
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = Unpack(context.Background(), bytes.NewReader(b), inner, Options{Name: "fuzz", Size: 1 << 16, Members: 50}, nil)
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 1 {
			t.Fatalf("outside: %v %v", entries, err)
		}
		_ = filepath.WalkDir(inner, func(p string, d os.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}
