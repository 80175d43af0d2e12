package url

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/internal/command"
	"hayloft/internal/leaktest"
	"hayloft/lab/ganeshalab"
	"hayloft/lab/httplab"
	"hayloft/lab/labtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// trimmed gives the objects of the suite the lengths they had before they were filled up to sectors, and a time where
// the driver has none.
type trimmed struct {
	repository.Repository
	objects map[string]string
}

type cut struct {
	repository.Source
	size int64
}

func (c cut) Size() int64 { return c.size }
func (c cut) ReadAt(p []byte, offset int64) (int, error) {
	if rest := max(0, c.size-offset); offset >= 0 && int64(len(p)) > rest {
		n, err := c.Source.ReadAt(p[:rest], offset)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return c.Source.ReadAt(p, offset)
}

func (r trimmed) Open(ctx context.Context, name string) (repository.Source, error) {
	s, err := r.Repository.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return cut{s, int64(len(r.objects[name]))}, nil
}

func (r trimmed) Stat(ctx context.Context, name string) (repository.Info, error) {
	info, err := r.Repository.Stat(ctx, name)
	if err == nil && info.Size == sectors(r.objects[name]) {
		info.Size = int64(len(r.objects[name]))
		if info.Modified.IsZero() {
			info.Modified = time.Unix(1, 0)
		}
	}
	return info, err
}

// sectors is the length of what fill makes.
func sectors(content string) int64 { return max(512, int64(len(content)+511)/512*512) }

// fill writes objects as images of a format below dir.
func fill(t *testing.T, dir, format string, objects map[string]string) {
	t.Helper()
	for name, content := range objects {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if format == "raw" {
			if err := os.WriteFile(path, []byte(content+strings.Repeat("\x00", int(sectors(content))-len(content))), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		raw := filepath.Join(t.TempDir(), "raw")
		if err := os.WriteFile(raw, append([]byte(content), make([]byte, sectors(content)-int64(len(content)))...), 0o600); err != nil {
			t.Fatal(err)
		}
		img(t, "convert", "-f", "raw", "-O", format, raw, path)
	}
}

func img(t *testing.T, args ...string) {
	t.Helper()
	if _, err := (command.Exec{}).Run(t.Context(), command.Cmd{Name: "qemu-img", Args: args}); err != nil {
		t.Fatal(err)
	}
}

func repo(t *testing.T, path string, options map[string]string) *Repository {
	t.Helper()
	r, err := New(disk.Repository{ID: 7, Path: path, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestDirectory(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-storage-daemon")
	for _, format := range []string{"qcow2", "vmdk", "vdi", "vhdx"} {
		t.Run(format, func(t *testing.T) {
			repositorytest.Reading(t, func(t *testing.T, objects map[string]string) repository.Repository {
				dir := t.TempDir()
				fill(t, dir, format, objects)
				return trimmed{repo(t, dir, map[string]string{"FORMAT": format}), objects}
			})
		})
	}
}

func TestHTTP(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-storage-daemon")
	repositorytest.Reading(t, func(t *testing.T, objects map[string]string) repository.Repository {
		dir := t.TempDir()
		fill(t, dir, "vmdk", objects)
		s, err := httplab.Start(httplab.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return trimmed{repo(t, s.URL, map[string]string{"FORMAT": "vmdk"}), objects}
	})
}

func TestNFS(t *testing.T) {
	ganeshalab.Run(t, func(t *testing.T, s *ganeshalab.Server) {
		for _, format := range []string{"raw", "qcow2"} {
			t.Run(format, func(t *testing.T) {
				made := false
				repositorytest.Reading(t, func(t *testing.T, objects map[string]string) repository.Repository {
					if !made {
						fill(t, filepath.Join(s.Dir, format), format, objects)
						made = true
					}
					return trimmed{repo(t, s.URL+"/"+format, map[string]string{"FORMAT": format}), objects}
				})
			})
		}
		t.Run("server gone", func(t *testing.T) {
			r := repo(t, s.URL+"/raw", nil)
			r.limit = 15 * time.Second
			source, err := r.Open(t.Context(), "big")
			if err != nil {
				t.Fatal(err)
			}
			defer source.Close()
			s.Stop()
			p := make([]byte, 5000)
			_, err = source.ReadAt(p, 0)
			class(t, "read", err, fault.Unavailable)
			_, err = r.Open(t.Context(), "a")
			class(t, "open", err, fault.Unavailable)
			s.Resume()
			for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
				if _, err = source.ReadAt(p, 0); err == nil || time.Since(begun) > 2*time.Minute {
					break
				}
			}
			if err != nil || !bytes.HasPrefix(p, []byte("0123456789abcdef")) {
				t.Errorf("%q, %v", p[:16], err)
			}
		})
	})
}

func class(t *testing.T, what string, err error, want fault.Class) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: %v is %v, want %v", what, err, fault.ClassOf(err), want)
	}
}

// TestReferences: an image that leans on another file is not opened, nor listed; QEMU does not even see it.
func TestReferences(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-storage-daemon")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{
		{"create", "-f", "qcow2", in("q/whole"), "1M"},
		{"create", "-f", "qcow2", "-F", "qcow2", "-b", in("q/whole"), in("q/backed")},
		{"create", "-f", "qcow2", "-o", "data_file=" + in("q/data.raw") + ",data_file_raw=on", in("q/external"), "1M"},
		{"create", "-f", "vmdk", in("v/whole"), "1M"},
		{"create", "-f", "vmdk", "-o", "subformat=streamOptimized", in("v/stream"), "1M"},
		{"create", "-f", "vmdk", "-o", "subformat=monolithicFlat", in("v/flat"), "1M"},
		{"create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", in("v/split"), "1M"},
		{"create", "-f", "vmdk", "-F", "vmdk", "-b", in("v/whole"), in("v/backed")},
	} {
		for _, d := range []string{"q", "v"} {
			if err := os.MkdirAll(in(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		img(t, args...)
	}
	descriptor := "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/passwd\" 0\n"
	for name, text := range map[string]string{"v/passwd": descriptor + strings.Repeat("#", 512), "v/text": "no image", "q/noise": strings.Repeat("noise", 1000)} {
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(in("q/whole"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("q/short"), whole[:1000], 0o644); err != nil {
		t.Fatal(err)
	}
	for format, want := range map[string]map[string]fault.Class{
		"qcow2": {"backed": fault.Invalid, "external": fault.Invalid, "noise": fault.Corrupt, "short": fault.Corrupt, "data.raw": fault.Corrupt},
		"vmdk":  {"flat": fault.Invalid, "split": fault.Invalid, "backed": fault.Invalid, "passwd": fault.Invalid, "text": fault.Corrupt},
	} {
		r := repo(t, in(format[:1]), map[string]string{"FORMAT": format})
		for name, want := range want {
			_, err := r.Open(t.Context(), name)
			class(t, "open "+name, err, want)
			if err != nil && !strings.Contains(err.Error(), "object "+name) {
				t.Error(err)
			}
		}
	}
	list, err := repo(t, in("v"), map[string]string{"FORMAT": "vmdk"}).List(t.Context(), "")
	got := ""
	for _, info := range list {
		got += info.Name + " "
		if info.Size != 1<<20 || info.Modified.IsZero() {
			t.Errorf("%+v", info)
		}
	}
	if got != "stream whole " || err != nil { // the extents of split are not whole without it
		t.Errorf("%q, %v", got, err)
	}
}

func TestOptions(t *testing.T) {
	for path, options := range map[string]map[string]string{
		"/srv": {}, "https://h/x": {"FORMAT": "raw"}, "srv": {}, "nfs:///x": {}, "nfs://h:2049/x": {}, "nfs://u@h/x": {}, "nfs://h/x?uid=0": {},
		"ssh://h/x": {}, "file:///etc": {}, "json:{}": {}, "gluster://h": {}, "gluster://h/v?x": {}, "nfs://h/a": {"UID": "root"}, "nfs://h/b": {"FORMAT": "luks"},
		"nfs://h/%zz": {}, "nbd://h/x": {}, "iscsi://h/x": {}, "rbd:pool/x": {},
	} {
		if _, err := New(disk.Repository{ID: 7, Path: path, Options: options}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7: ") {
			t.Errorf("%s %v: %v", path, options, err)
		}
	}
	for _, path := range []string{"nfs://h/x", "gluster://h:1/v/x", "nfs://[::1]/x"} {
		if _, err := New(disk.Repository{Path: path}); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	r := repo(t, "nfs://h/x", nil)
	_, err := r.Create(t.Context(), "a")
	class(t, "create", err, fault.Unsupported)
	class(t, "delete", r.Delete(t.Context(), "a"), fault.Unsupported)
	_, err = r.List(t.Context(), "")
	class(t, "list", err, fault.Unsupported)
}

func FuzzWhole(f *testing.F) {
	f.Add("vmdk", append([]byte("KDMV"), make([]byte, 2000)...))
	f.Add("qcow2", append([]byte("QFI\xfb"), make([]byte, 2000)...))
	f.Fuzz(func(t *testing.T, format string, image []byte) {
		switch format {
		case "qcow2", "vmdk", "vdi", "vhdx":
			_ = whole(format, int64(len(image)), bytes.NewReader(image))
		}
	})
}
