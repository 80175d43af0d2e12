package nbd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/lab/labtest"
)

// The server of TestKill is this test program, with these in its environment.
const (
	envSocket = "HAYLOFT_NBD_SOCKET"
	envFile   = "HAYLOFT_NBD_FILE"
)

// TestServerProcess is no test but the server that TestKill kills.
func TestServerProcess(t *testing.T) {
	if os.Getenv(envSocket) == "" {
		return
	}
	f, err := os.OpenFile(os.Getenv(envFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := NewFile(f, false)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", os.Getenv(envSocket))
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(named())
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(s.Serve(context.Background(), listener, file))
}

func startServer(t *testing.T, file, socket string) *exec.Cmd {
	t.Helper()
	_ = os.Remove(socket)
	t.Setenv(envFile, file)
	t.Setenv(envSocket, socket)
	return daemon(t, socket, os.Args[0], "-test.run=^TestServerProcess$", "-test.timeout=10m")
}

// TestKill: qemu-io writes and verifies while the server is killed and started again, and notices nothing.
func TestKill(t *testing.T) {
	labtest.Root(t, "qemu-io")
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	content, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	server := startServer(t, file, socket)
	image := fmt.Sprintf("driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=disk,file.reconnect-delay=120", socket)
	program := exec.CommandContext(t.Context(), "qemu-io", "--image-opts", image)
	program.WaitDelay = time.Second
	in, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	program.Stderr = program.Stdout
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(out)
		said <- all
	}()
	const rounds = 120
	for i := range rounds {
		at, value := i*512<<10, i%250+1
		fmt.Fprintf(in, "write -P %d %d 512k\nread -P %d %d 512k\n", value, at, value, at)
		if i%30 == 10 {
			if err := server.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = server.Wait()
			server = startServer(t, file, socket)
		}
		wait(t, func() bool { // qemu-io says nothing before its end
			p := make([]byte, 1)
			_, err := content.ReadAt(p, int64(at)+512<<10-1)
			return err == nil && p[0] == byte(value)
		})
	}
	in.Close()
	text := string(<-said)
	if err := program.Wait(); err != nil {
		t.Fatal(err, text)
	}
	if wrote, read := strings.Count(text, "wrote 524288/524288"), strings.Count(text, "read 524288/524288"); wrote != rounds || read != rounds || strings.Contains(text, "failed") {
		t.Errorf("%d writes, %d reads: %s", wrote, read, text)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rounds {
		if !bytes.Equal(got[i*512<<10:(i+1)*512<<10], bytes.Repeat([]byte{byte(i%250 + 1)}, 512<<10)) {
			t.Errorf("round %d is not in the file", i)
		}
	}
}
