package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/path"
	"hayloft/image"
	"hayloft/lab/labtest"
)

func newRepository(t *testing.T) (repository.Repository, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := path.New(disk.Repository{ID: 1, Driver: "path", Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", e.Name())
	}
}

func TestImportRaw(t *testing.T) {
	repo, dir := newRepository(t)
	content := append(append(noise(200_000), make([]byte, 1<<20)...), noise(70_000)...)
	sum := sha256.Sum256(content)
	var last int64
	info, err := image.Import(context.Background(), image.ImportOptions{
		Source: write(t, "a.img", content), Type: image.OS, To: repo, Name: "a", ExpectedDigest: "sha256:" + hex.EncodeToString(sum[:]),
		Report: func(done, total int64) { last = done },
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "a"))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("content differs: %v", err)
	}
	if info.Format != image.Raw || info.Size != int64(len(content)) || last == 0 {
		t.Fatalf("%+v, last report %d", info, last)
	}
	index, err := os.ReadFile(filepath.Join(dir, "a.idx"))
	if err != nil {
		t.Fatal(err)
	}
	x, err := image.UnmarshalIndex(index)
	if err != nil || x.Digest() != info.Digest || info.StoredBytes != x.DataBytes() || info.StoredBytes >= info.Size {
		t.Fatalf("index: %v %+v", err, info)
	}
	_, err = image.Import(context.Background(), image.ImportOptions{Source: filepath.Join(dir, "a"), Type: image.OS, To: repo, Name: "a"})
	if !fault.Is(err, fault.Exists) {
		t.Fatalf("same name again: %v", err)
	}
	if _, err = image.Import(context.Background(), image.ImportOptions{Source: "file://" + filepath.Join(dir, "a"), Type: image.OS, To: repo, Name: "b",
		ExpectedDigest: info.Digest}); err != nil {
		t.Fatalf("expecting our own digest: %v", err)
	}
}

func TestCreateEmpty(t *testing.T) {
	repo, dir := newRepository(t)
	info, err := image.Create(context.Background(), image.CreateOptions{Size: 1 << 30, To: repo, Name: "data"})
	if err != nil || info.StoredBytes != 0 || info.Size != 1<<30 {
		t.Fatalf("%+v %v", info, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "data")); err != nil || fi.Size() != 1<<30 {
		t.Fatalf("%v %v", fi, err)
	}
}

type member struct {
	name, link, content string
	kind                byte
}

func tarOf(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.kind, Mode: 0o644, Size: int64(len(m.content))}
		if m.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(t *testing.T, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

var rootFS = []member{
	{name: "./", kind: tar.TypeDir}, {name: "./bin/", kind: tar.TypeDir}, {name: "./bin/busybox", content: strings.Repeat("busy", 50_000)},
	{name: "./bin/sh", link: "/bin/busybox", kind: tar.TypeSymlink}, {name: "./bin/ls", link: "./bin/busybox", kind: tar.TypeLink},
}

func TestImportArchives(t *testing.T) {
	plain := tarOf(t, rootFS...)
	for _, c := range []struct {
		format  image.Format
		content []byte
	}{{image.Tar, plain}, {image.TarGzip, gz(plain)}, {image.TarZstd, zst(t, plain)}} {
		t.Run(string(c.format), func(t *testing.T) {
			repo, dir := newRepository(t)
			info, err := image.Import(context.Background(), image.ImportOptions{Source: write(t, "r", c.content), Type: image.OS, To: repo, Name: "r"})
			if err != nil || info.Format != c.format || info.Size != 200_000 || info.ObjectSize != int64(len(c.content)) {
				t.Fatalf("%+v %v", info, err)
			}
			got, _ := os.ReadFile(filepath.Join(dir, "r"))
			if !bytes.Equal(got, c.content) {
				t.Fatal("stored otherwise")
			}
		})
	}
}

// TestImportRefuses has every bad input of the issue: each names thing and cause, and leaves nothing.
func TestImportRefuses(t *testing.T) {
	plain := tarOf(t, rootFS...)
	packed := gz(plain)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-6] ^= 1 // in the checksum
	cutZstd := zst(t, tarOf(t, member{name: "noise", content: string(noise(300_000))}))
	with := func(m ...member) []byte { return gz(tarOf(t, m...)) }
	for _, c := range []struct {
		name    string
		content []byte
		options image.ImportOptions
		class   fault.Class
		want    string
	}{
		{name: "digest mismatch", content: noise(1000), options: image.ImportOptions{ExpectedDigest: "md5:" + strings.Repeat("0", 32)}, class: fault.Corrupt, want: "digest mismatch"},
		{name: "digest unknown", content: noise(1000), options: image.ImportOptions{ExpectedDigest: "crc:1"}, class: fault.Invalid, want: `digest "crc:1"`},
		{name: "empty", class: fault.Corrupt, want: "is empty"},
		{name: "slash in name", content: noise(10), options: image.ImportOptions{Name: "a/b"}, class: fault.Invalid, want: "slash"},
		{name: "newline in name", content: noise(10), options: image.ImportOptions{Name: "a\nb"}, class: fault.Invalid, want: `'\n'`},
		{name: "index name", content: noise(10), options: image.ImportOptions{Name: "a.idx"}, class: fault.Invalid, want: "chunk indexes"},
		{name: "hint contradicted", content: noise(1000), options: image.ImportOptions{Format: image.QCOW2}, class: fault.Invalid, want: "is raw by its content, not qcow2"},
		{name: "compressed disk", content: gz(noise(1000)), class: fault.Unsupported, want: "compressed (gzip)"},
		{name: "archive as CDROM", content: packed, options: image.ImportOptions{Type: image.CDROM}, class: fault.Invalid, want: "no CDROM"},
		{name: "unknown type", content: packed, options: image.ImportOptions{Type: "X"}, class: fault.Invalid, want: `type "X"`},
		{name: "truncated gzip", content: packed[:len(packed)-200], class: fault.Corrupt, want: "truncated"},
		{name: "damaged gzip", content: flipped, class: fault.Corrupt, want: "damaged"},
		{name: "truncated tar", content: plain[:100_000], class: fault.Corrupt, want: `"./bin/busybox": truncated`},
		{name: "tar without end", content: plain[:len(plain)-1024], class: fault.Corrupt, want: "no end mark"},
		{name: "truncated zstd", content: cutZstd[:len(cutZstd)-1000], class: fault.Corrupt, want: "truncated"},
		{name: "dotdot", content: with(member{name: "a/../../etc/passwd", content: "x"}), class: fault.Invalid, want: `member "a/../../etc/passwd": has ..`},
		{name: "absolute", content: with(member{name: "/etc/passwd", content: "x"}), class: fault.Invalid, want: "absolute path"},
		{name: "device", content: with(member{name: "dev/sda", kind: tar.TypeBlock}), class: fault.Invalid, want: `"dev/sda": is a device node`},
		{name: "hard link out", content: with(member{name: "a", link: "../../etc/shadow", kind: tar.TypeLink}), class: fault.Invalid, want: "hard link to"},
		{name: "hard link to absolute", content: with(member{name: "a", link: "/etc/shadow", kind: tar.TypeLink}), class: fault.Invalid, want: "absolute"},
		{name: "hard link to nothing", content: with(member{name: "a", link: "b", kind: tar.TypeLink}), class: fault.Invalid, want: "not a file in the archive"},
		{name: "through a link", content: with(member{name: "l", link: "/etc", kind: tar.TypeSymlink}, member{name: "l/passwd", content: "x"}), class: fault.Invalid, want: `through the symbolic link "l"`},
		{name: "below a file", content: with(member{name: "f", content: "x"}, member{name: "f/g", content: "x"}), class: fault.Invalid, want: "not a directory"},
		{name: "twice", content: with(member{name: "f", content: "x"}, member{name: "./f", content: "y"}), class: fault.Invalid, want: "twice"},
		{name: "link over directory", content: with(member{name: "d/x", content: "x"}, member{name: "d", link: "/etc", kind: tar.TypeSymlink}), class: fault.Invalid, want: "twice"},
		{name: "too large", content: packed, options: image.ImportOptions{Limits: image.Limits{Size: 190_000}}, class: fault.Invalid, want: "limit of 190000"},
		{name: "too many", content: packed, options: image.ImportOptions{Limits: image.Limits{Members: 2}}, class: fault.Invalid, want: "limit of 2 members"},
		{name: "vmdk descriptor", content: []byte("# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n" + strings.Repeat(" ", 600)), class: fault.Invalid, want: "vmdk descriptor"},
		{name: "truncated squashfs", content: append([]byte("hsqs"), bytes.Repeat([]byte{1}, 200)...), class: fault.Corrupt, want: "truncated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			repo, dir := newRepository(t)
			o := c.options
			o.Source, o.To = write(t, "source", c.content), repo
			if o.Name == "" {
				o.Name = "bad"
			}
			if o.Type == "" {
				o.Type = image.OS
			}
			_, err := image.Import(context.Background(), o)
			if fault.ClassOf(err) != c.class || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), o.Source) {
				t.Errorf("got %v (%v)", err, fault.ClassOf(err))
			}
			empty(t, dir)
		})
	}
}

func TestKernelStoredAsItIs(t *testing.T) {
	repo, dir := newRepository(t)
	content := gz(noise(1000))
	info, err := image.Import(context.Background(), image.ImportOptions{Source: write(t, "initrd", content), Type: image.Ramdisk, To: repo, Name: "initrd"})
	got, _ := os.ReadFile(filepath.Join(dir, "initrd"))
	if err != nil || info.Format != image.Raw || !bytes.Equal(got, content) {
		t.Fatalf("%+v %v", info, err)
	}
}

func TestImportFromURL(t *testing.T) {
	content := noise(300_000)
	block := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			w.Write(content)
		case "/short":
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write(content[:1000])
		case "/stall":
			w.Write(content[:1000])
			w.(http.Flusher).Flush()
			<-block
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	defer close(block)
	repo, dir := newRepository(t)
	get := func(name string) error {
		stall := 2 * time.Minute
		if name == "/stall" {
			stall = 100 * time.Millisecond
		}
		_, err := image.Import(context.Background(), image.ImportOptions{Source: server.URL + name, Type: image.OS, To: repo, Name: "u",
			Limits: image.Limits{Stall: stall}})
		return err
	}
	for name, class := range map[string]fault.Class{"/short": fault.Unavailable, "/stall": fault.Unavailable, "/none": fault.NotFound} {
		if err := get(name); !fault.Is(err, class) || !strings.Contains(err.Error(), server.URL+name) {
			t.Errorf("%s: %v", name, err)
		}
		empty(t, dir)
	}
	if err := get("/good"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "u")); !bytes.Equal(got, content) {
		t.Fatal("content differs")
	}
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	repo, dir := newRepository(t)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := image.Import(ctx, image.ImportOptions{Source: write(t, "a", noise(8<<20)), Type: image.OS, To: repo, Name: "a",
		Report: func(done, _ int64) { cancel() }})
	if err == nil {
		t.Fatal("went on")
	}
	empty(t, dir)
}

// leaving is a repository whose callers leave while an object is committed: with done, it has been by then.
type leaving struct {
	image.Target
	name string
	done bool
}

func (l leaving) Create(ctx context.Context, name string) (image.Writer, error) {
	w, err := l.Target.Create(ctx, name)
	if name == l.name && err == nil {
		return leaver{w, l.done}, nil
	}
	return w, err
}

type leaver struct {
	image.Writer
	done bool
}

func (l leaver) Commit(ctx context.Context) error {
	if l.done {
		if err := l.Writer.Commit(ctx); err != nil {
			return err
		}
	}
	return context.Canceled
}

// TestLeftWhileItIsCommitted: an object has its index, whatever its writer has heard of it, and there is no index without one.
func TestLeftWhileItIsCommitted(t *testing.T) {
	for _, c := range []struct {
		name string
		done bool
		want []string
	}{{"a", true, []string{"a", "a.idx"}}, {"a", false, nil}, {"a.idx", true, nil}, {"a.idx", false, nil}} {
		repo, dir := newRepository(t)
		_, err := image.Import(t.Context(), image.ImportOptions{Source: write(t, "a", noise(1<<20)), Type: image.OS, To: leaving{repo, c.name, c.done}, Name: "a"})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%+v: %v", c, err)
		}
		var there []string
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			there = append(there, e.Name())
		}
		if err != nil || !slices.Equal(there, c.want) {
			t.Errorf("%+v: there are %q, %v", c, there, err)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestImportForeignDisks(t *testing.T) {
	labtest.Root(t, "qemu-img")
	content := append(noise(3<<20), make([]byte, 5<<20)...)
	raw := write(t, "a.raw", content)
	for _, format := range []image.Format{image.QCOW2, image.VMDK, image.VHDX, image.VDI} {
		t.Run(string(format), func(t *testing.T) {
			repo, dir := newRepository(t)
			file := filepath.Join(t.TempDir(), "disk")
			run(t, "qemu-img", "convert", "-O", string(format), raw, file)
			info, err := image.Import(context.Background(), image.ImportOptions{Source: file, Type: image.OS, To: repo, Name: "a"})
			if err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(filepath.Join(dir, "a"))
			if !bytes.HasPrefix(got, content) || info.Format != image.Raw || info.Size != int64(len(got)) || info.StoredBytes != 3<<20 {
				t.Fatalf("%+v", info)
			}
			whole, _ := os.ReadFile(file)
			empty := func() {
				if e, _ := os.ReadDir(dir); len(e) != 2 {
					t.Errorf("left behind: %v", e)
				}
			}
			if _, err := image.Import(context.Background(), image.ImportOptions{Source: write(t, "cut", whole[:len(whole)/3]), Type: image.OS, To: repo, Name: "b"}); err == nil {
				t.Error("took a third of the file")
			} else if !fault.Is(err, fault.Corrupt) {
				t.Errorf("truncated: %v", err)
			}
			empty()
			if far, err := image.Import(context.Background(), image.ImportOptions{Source: file, Type: image.OS, To: elsewhere{repo}, Name: "far"}); err != nil || far.Digest != info.Digest {
				t.Errorf("into a repository that is not on this host: %+v, %v", far, err)
			}
		})
	}
}

// elsewhere is a repository whose objects are no files of this host.
type elsewhere struct{ image.Target }

func (e elsewhere) Create(ctx context.Context, name string) (image.Writer, error) {
	w, err := e.Target.Create(ctx, name)
	return struct{ image.Writer }{w}, err
}

func TestImportRefusesReferences(t *testing.T) {
	labtest.Root(t, "qemu-img")
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	secret := write(t, "secret", noise(1<<20))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", at("backed"))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data"), at("external"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", at("encrypted"), "1M")
	f, err := os.OpenFile(at("encrypted"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{0, 0, 0, 2}, 32) // crypt_method
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", at("flat.vmdk"), "1M")
	for name, want := range map[string]string{"backed": secret, "external": "external data file", "encrypted": "encrypted", "flat.vmdk": "vmdk descriptor"} {
		repo, left := newRepository(t)
		_, err := image.Import(context.Background(), image.ImportOptions{Source: at(name), Type: image.OS, To: repo, Name: "x"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		empty(t, left)
	}
}

func TestImportSquashFS(t *testing.T) {
	labtest.Root(t, "mksquashfs", "unsquashfs")
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), bytes.Repeat([]byte("squash"), 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "s")
	run(t, "mksquashfs", src, file, "-noappend", "-quiet", "-no-progress")
	repo, _ := newRepository(t)
	info, err := image.Import(context.Background(), image.ImportOptions{Source: file, Type: image.OS, To: repo, Name: "s"})
	if err != nil || info.Format != image.SquashFS || info.Size != 600_000 {
		t.Fatalf("%+v %v", info, err)
	}
	whole, _ := os.ReadFile(file)
	bad := bytes.Clone(whole)
	for i := 100; i < 140; i++ {
		bad[i] ^= 0xff
	}
	repo, dir := newRepository(t)
	if _, err := image.Import(context.Background(), image.ImportOptions{Source: write(t, "bad", bad), Type: image.OS, To: repo, Name: "s"}); !fault.Is(err, fault.Corrupt) {
		t.Errorf("damaged: %v", err)
	}
	empty(t, dir)
	run(t, "mknod", filepath.Join(src, "null"), "c", "1", "3")
	run(t, "mksquashfs", src, file, "-noappend", "-quiet", "-no-progress")
	if _, err := image.Import(context.Background(), image.ImportOptions{Source: file, Type: image.OS, To: repo, Name: "s"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "device node") {
		t.Errorf("device: %v", err)
	}
	empty(t, dir)
}
