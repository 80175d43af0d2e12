package nbd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/disk/export"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// program runs an installed program to its end.
func program(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := command.Exec{}.Run(t.Context(), command.Cmd{Name: name, Args: args})
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// daemon runs a program until the test ends, from when its socket is there.
func daemon(t *testing.T, socket, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, said.Bytes())
		}
	})
	wait(t, func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return cmd
}

func uriOf(socket string) string { return "nbd+unix:///disk?socket=" + socket }

// serveFile serves a new file with these bytes.
func serveFile(t *testing.T, content []byte) (*served, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	file, err := NewFile(f, false)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, file, named()), path
}

// holed is data, a hole, data and a hole again, of 1 MiB each.
func holed(t *testing.T) (*served, string, []byte) {
	t.Helper()
	s, path := serveFile(t, make([]byte, 0))
	s.stop()
	want := make([]byte, 4<<20)
	copy(want, pattern(1<<20, 1))
	copy(want[2<<20:], pattern(1<<20, 2))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	_, e1 := f.WriteAt(want[:1<<20], 0)
	_, e2 := f.WriteAt(want[2<<20:3<<20], 2<<20)
	if err := errors.Join(e1, e2, f.Truncate(4<<20)); err != nil {
		t.Fatal(err)
	}
	file, err := NewFile(f, false)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, file, named()), path, want
}

func TestNbdinfo(t *testing.T) {
	labtest.Root(t, "nbdinfo")
	s, _, _ := holed(t)
	var info struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal(program(t, "nbdinfo", "--json", uriOf(s.path)), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("%+v", info)
	}
	e := info.Exports[0]
	for _, flag := range []string{"can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"} {
		if e[flag] != true {
			t.Errorf("%s is %v", flag, e[flag])
		}
	}
	if e["export-size"] != 4.0*(1<<20) || e["is_read_only"] != false || fmt.Sprint(e["contexts"]) != "[base:allocation]" {
		t.Errorf("%v", e)
	}
	if list := string(program(t, "nbdinfo", "--list", "nbd+unix:///?socket="+s.path)); !strings.Contains(list, `"disk"`) {
		t.Errorf("list: %s", list)
	}
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal(program(t, "nbdinfo", "--map", "--json", uriOf(s.path)), &extents); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{0, 3, 0, 3} {
		if len(extents) != 4 || extents[i].Type != want || extents[i].Length != 1<<20 {
			t.Fatalf("%+v", extents)
		}
	}
}

func TestNbdcopy(t *testing.T) {
	labtest.Root(t, "nbdcopy")
	s, _, want := holed(t)
	copied := filepath.Join(t.TempDir(), "copy")
	program(t, "nbdcopy", uriOf(s.path), copied)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, want) {
		t.Fatal("other bytes", err)
	}
	target, path := serveFile(t, bytes.Repeat([]byte{1}, len(want)))
	program(t, "nbdcopy", "--flush", copied, uriOf(target.path))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Fatal("other bytes", err)
	}
}

func TestQemuImg(t *testing.T) {
	labtest.Root(t, "qemu-img")
	s, path, want := holed(t)
	uri := uriOf(s.path)
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(program(t, "qemu-img", "info", "-f", "raw", "--output=json", uri), &info); err != nil || info.Size != 4<<20 {
		t.Errorf("%+v %v", info, err)
	}
	copied := filepath.Join(t.TempDir(), "copy.qcow2")
	program(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, copied)
	program(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", copied, uri)
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal(program(t, "qemu-img", "map", "-f", "raw", "--output=json", uri), &extents); err != nil || len(extents) != 4 {
		t.Fatalf("%+v %v", extents, err)
	}
	for i, e := range extents {
		if e.Zero != (i%2 == 1) || e.Data == e.Zero || e.Length != 1<<20 {
			t.Errorf("%+v", e)
		}
	}
	target, into := serveFile(t, bytes.Repeat([]byte{1}, len(want)))
	program(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copied, uriOf(target.path))
	program(t, "cmp", path, into)
}

func TestQemuIO(t *testing.T) {
	labtest.Root(t, "qemu-io")
	s, path := serveFile(t, make([]byte, 8<<20))
	out := program(t, "qemu-io", "-f", "raw", uriOf(s.path),
		"-c", "write -f -P 17 0 1M", "-c", "write -P 18 1M 5M", "-c", "aio_write -P 19 6M 64k", "-c", "aio_write -f -P 20 7M 3k", "-c", "aio_flush", "-c", "flush",
		"-c", "read -P 17 0 1M", "-c", "read -P 18 1M 5M", "-c", "read -P 19 6M 64k", "-c", "read -P 20 7M 3k",
		"-c", "discard 1M 1M", "-c", "read -P 0 1M 1M", "-c", "write -z -u 2M 1M", "-c", "read -P 0 2M 1M", "-c", "write -z 3M 100k", "-c", "read -P 0 3M 100k", "-c", "read -P 18 4M 2M")
	if bytes.Contains(bytes.ToLower(out), []byte("fail")) || bytes.Contains(out, []byte("error")) {
		t.Fatalf("%s", out)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8<<20)
	for _, part := range []struct {
		value    byte
		from, to int
	}{{17, 0, 1 << 20}, {18, 3<<20 + 100<<10, 6 << 20}, {19, 6 << 20, 6<<20 + 64<<10}, {20, 7 << 20, 7<<20 + 3<<10}} {
		copy(want[part.from:part.to], bytes.Repeat([]byte{part.value}, part.to-part.from))
	}
	if !bytes.Equal(got, want) {
		t.Error("the file holds something else")
	}
}

func TestFio(t *testing.T) {
	labtest.Root(t, "fio")
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow %v", slow), func(t *testing.T) {
			m := newMemory(16 << 20)
			device := export.Device(quickMemory{memory: m, missFrom: 12 << 20})
			if slow {
				device = m
			}
			s := serve(t, device, named())
			program(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uriOf(s.path), "--rw=randrw", "--bsrange=512-128k", "--iodepth=16",
				"--size=16m", "--io_size=48m", "--verify=crc32c", "--verify_fatal=1", "--randrepeat=1", "--fsync=32")
		})
	}
}

// peers are servers of others for our client.
func peers(t *testing.T) map[string]func(file, socket string) (string, []string) {
	labtest.Root(t, "qemu-nbd", "nbdkit")
	return map[string]func(file, socket string) (string, []string){
		"qemu-nbd": func(file, socket string) (string, []string) {
			return "qemu-nbd", []string{"--persistent", "--shared=8", "--format=raw", "--discard=unmap", "--export-name=disk", "--socket=" + socket, file}
		},
		"nbdkit": func(file, socket string) (string, []string) {
			return "nbdkit", []string{"--foreground", "--unix", socket, "file", file}
		},
	}
}

func TestClientOfPeers(t *testing.T) {
	for name, start := range peers(t) {
		t.Run(name, func(t *testing.T) {
			_, path, want := holed(t)
			socket := filepath.Join(t.TempDir(), "s")
			program, args := start(path, socket)
			server := daemon(t, socket, program, args...)
			c := dial(t, socket, Dialer{Patience: longest})
			got := make([]byte, len(want))
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatal("other bytes", err)
			}
			for at, next := range map[int64][2]int64{0: {0, 1 << 20}, 1 << 20: {2 << 20, 3 << 20}, 2<<20 + 512: {2<<20 + 512, 3 << 20}} {
				if start, end, err := c.NextData(at); start != next[0] || end != next[1] || err != nil {
					t.Errorf("data after %d: %d %d %v", at, start, end, err)
				}
			}
			if _, _, err := c.NextData(3 << 20); err != io.EOF {
				t.Error(err)
			}
			copy(want[3<<20:], pattern(100_000, 9))
			clear(want[4096:8192])
			if _, err := c.WriteAt(want[3<<20:3<<20+100_000], 3<<20); err != nil {
				t.Error(err)
			}
			if err := errors.Join(c.Discard(4096, 4096), c.Sync(), c.Write(t.Context(), want[:512], 0, true)); err != nil {
				t.Error(err)
			}
			if onDisk, err := os.ReadFile(path); err != nil || !bytes.Equal(onDisk, want) {
				t.Error("the file holds something else", err)
			}
			// Another server in its place: what is asked meanwhile waits.
			if err := server.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = server.Wait()
			read := make(chan error)
			go func() { read <- c.Read(t.Context(), got, 0) }()
			os.Remove(socket)
			daemon(t, socket, program, args...)
			if err := <-read; err != nil || !bytes.Equal(got, want) {
				t.Error("after another start", err)
			}
		})
	}
}
