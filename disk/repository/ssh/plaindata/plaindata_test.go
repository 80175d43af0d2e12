package plaindata

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var secret = bytes.Repeat([]byte{7}, SecretSize)

// serve starts a server on dir; end closes its standard input, and waits for it.
func serve(t *testing.T, dir string) (address string, end func()) {
	t.Helper()
	in, life := io.Pipe()
	said, out := io.Pipe()
	var group sync.WaitGroup
	group.Go(func() {
		defer out.Close()
		if err := Serve(context.Background(), ServerConfig{Base: dir, Stdin: in, Stdout: out, Listen: "127.0.0.1", Peer: "127.0.0.1"}); err != nil {
			t.Error(err)
		}
	})
	if _, err := io.WriteString(life, hex.EncodeToString(secret)+"\n"); err != nil {
		t.Fatal(err)
	}
	port, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end = func() { once.Do(func() { life.Close(); group.Wait() }) }
	t.Cleanup(end)
	return "127.0.0.1:" + strings.TrimSpace(port), end
}

func client(t *testing.T, address string, secret []byte) *Client {
	c := NewClient(address, secret)
	t.Cleanup(c.Close)
	return c
}

func TestReadAndWrite(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, dir)
	c := client(t, address, secret)
	h, err := c.Open("a", true)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, maxWrite+5<<20+123)
	rand.NewChaCha8(sha256.Sum256(nil)).Read(content)
	if err := c.WriteAt(h, content, 1<<20); err != nil {
		t.Fatal(err)
	}
	if start, end, err := c.NextData(h, 0); err != nil || start != 1<<20 || end != int64(len(content))+1<<20 {
		t.Error(start, end, err)
	}
	if _, _, err := c.NextData(h, int64(len(content))+1<<20); err != io.EOF {
		t.Error(err)
	}
	if err := c.Punch(h, 2<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	clear(content[1<<20 : 2<<20])
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			p := make([]byte, 3<<20)
			offset := i << 20
			n, err := c.ReadAt(h, p, int64(offset)+1<<20)
			if err != nil || !bytes.Equal(p[:n], content[offset:offset+len(p)]) {
				t.Error(i, n, err)
			}
		})
	}
	group.Wait()
	if n, err := c.ReadAt(h, make([]byte, 100), int64(len(content))+1<<20-7); n != 7 || err != nil {
		t.Error(n, err)
	}
	reader, err := c.Open("a", false)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"write": c.WriteAt(reader, []byte("x"), 0), "punch": c.Punch(reader, 0, 1)} {
		if !fault.Is(err, fault.Permission) {
			t.Errorf("%s through a reader: %v", what, err)
		}
	}
	if err := c.CloseFile(h); err != nil {
		t.Error(err)
	}
	if _, err := c.ReadAt(h, make([]byte, 1), 0); !fault.Is(err, fault.Invalid) {
		t.Errorf("closed: %v", err)
	}
	if n, err := c.ReadAt(reader, make([]byte, 1), 0); n != 1 || err != nil {
		t.Errorf("the connection after errors: %d %v", n, err)
	}
}

// TestNothingOutside: only regular files below the base are to be had.
func TestNothingOutside(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/base/d", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"/secret", "/base/d/in"} {
		if err := os.WriteFile(dir+f, []byte("s"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.Symlink("../secret", dir+"/base/link")
	_ = os.Symlink("d", dir+"/base/dirlink")
	_ = unix.Mkfifo(dir+"/base/pipe", 0o600)
	address, _ := serve(t, dir+"/base")
	c := client(t, address, secret)
	if _, err := c.Open("d/in", false); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"../secret", "/etc/passwd", dir + "/secret", "link", "dirlink/in", "pipe", "d", ".", "", "none", "d/../../secret"} {
		for _, write := range []bool{false, true} {
			if _, err := c.Open(name, write); err == nil {
				t.Errorf("opened %q", name)
			}
		}
	}
	if _, err := c.Open("none", false); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestStrangers(t *testing.T) {
	dir := t.TempDir()
	address, _ := serve(t, dir)
	other := bytes.Repeat([]byte{8}, SecretSize)
	_, err := client(t, address, other).Open("a", false)
	if !fault.Is(err, fault.Permission) || !errors.As(err, new(*LostError)) {
		t.Errorf("a client that does not know the secret: %v", err)
	}
	// A server that does not know it.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		if c, err := l.Accept(); err == nil {
			_ = receive(c, other)
			c.Close()
		}
	})
	if _, err := client(t, l.Addr().String(), secret).Open("a", false); !fault.Is(err, fault.Permission) {
		t.Errorf("a server that does not know the secret: %v", err)
	}
	l.Close()
	group.Wait()
	// One that sends back what it is sent.
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	first := append([]byte(greeting), make([]byte, nonceSize)...)
	answer := make([]byte, nonceSize+sha256.Size)
	if _, err := conn.Write(first); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(answer[nonceSize:]); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("an echo was let in")
	}
}

func TestServerEnds(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	address, end := serve(t, dir)
	c := client(t, address, secret)
	h, err := c.Open("a", true)
	if err != nil {
		t.Fatal(err)
	}
	end()
	for what, err := range map[string]error{"write": c.WriteAt(h, []byte("x"), 0), "punch": c.Punch(h, 0, 1), "close": c.CloseFile(h)} {
		if !fault.Is(err, fault.Unavailable) || !errors.As(err, new(*LostError)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.ReadAt(h, make([]byte, 1), 0); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	c.Close()
	if _, err := c.Open("a", false); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

// TestLease: a server whose host is gone without a word ends.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, life := io.Pipe()
		ended := make(chan time.Time, 1)
		go watch(in, func() {
			select {
			case ended <- time.Now():
			default:
			}
		})
		for range 3 {
			time.Sleep(Lease - time.Second)
			if _, err := life.Write([]byte(".")); err != nil {
				t.Fatal(err)
			}
		}
		last := time.Now()
		if at := <-ended; at.Sub(last) != Lease {
			t.Errorf("ended %v after the last sign of life", at.Sub(last))
		}
		life.Close()
	})
}

func TestBadSecrets(t *testing.T) {
	for _, in := range []string{"", "\n", "00\n", strings.Repeat("zz", SecretSize) + "\n", strings.Repeat("00", SecretSize+1) + "\n"} {
		err := Serve(t.Context(), ServerConfig{Base: t.TempDir(), Stdin: strings.NewReader(in), Stdout: io.Discard})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// FuzzServer: whatever an introduced client says, the server answers or hangs up, and goes on with others.
func FuzzServer(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(dir+"/a", []byte("content"), 0o600); err != nil {
		f.Fatal(err)
	}
	name := append(request{op: opOpen, handle: 1, length: 1}.marshal(), 'a')
	f.Add(name)
	for op := byte(0); op < 8; op++ {
		f.Add(append(name, request{op: op, handle: 1, offset: 1, length: 3}.marshal()...))
		f.Add(append(name, request{op: op, handle: 1, offset: 1 << 63, length: 1 << 63}.marshal()...))
	}
	f.Add(append(append(name, request{op: opWrite, handle: 1, length: 3}.marshal()...), "abc"...))
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &server{config: ServerConfig{Base: dir}, secret: secret, files: map[uint32]*file{}, conns: map[net.Conn]bool{}}
		base, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(base)
		s.base = base
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.admit(conn)
		if err := greet(c, secret); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(said)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
		s.end()
		s.wait.Wait()
		if fi, err := os.Stat(dir + "/a"); err != nil || fi.Size() > 1<<62 {
			t.Error(fi, err)
		}
		_ = os.Truncate(dir+"/a", 7)
	})
}
