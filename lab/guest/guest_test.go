package guest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"hayloft/internal/command"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// writer is what TestPowerCut has written before the power is cut.
type writer struct {
	name, prepare, mount, path string
	args                       []string
}

func TestPowerCut(t *testing.T) {
	durable := BuildProgram(t, "hayloft/lab/guest/durable")
	g := ForTest(t, Config{Disks: []Disk{{Size: 64 << 20, Volatile: true}, {Size: 64 << 20, Volatile: true}, {Size: 64 << 20}},
		Programs: map[string]string{"durable": durable}})
	for _, w := range []writer{
		{"a disk", "true", "true", "/dev/vdb", nil},
		{"a file of ext4", "mkfs.ext4 -q /dev/vdc", "mount /dev/vdc /mnt", "/mnt/file", nil},
		{"a disk that keeps what is not flushed", "true", "true", "/dev/vdd", nil},
	} {
		t.Run(w.name, func(t *testing.T) {
			g.Script(t.Context(), t, w.prepare+" && "+w.mount)
			if err := cutAndVerify(t, g, w); err != nil {
				t.Error(err)
			}
		})
	}
	for _, w := range []writer{
		{"a writer that does not sync is found", "true", "true", "/dev/vdb", []string{"-nosync"}},
		{"a kernel that does not flush is found", "echo write through >/sys/block/vdb/queue/write_cache", "true", "/dev/vdb", nil},
	} {
		t.Run(w.name, func(t *testing.T) {
			g.Script(t.Context(), t, w.prepare)
			if err := cutAndVerify(t, g, w); err == nil || !strings.Contains(err.Error(), "lost") {
				t.Errorf("nothing is lost: %v", err)
			}
		})
	}
}

// cutAndVerify writes until the power is cut, boots again and returns what the verifier finds.
func cutAndVerify(t *testing.T, g *Guest, w writer) error {
	t.Helper()
	args := []string{"-path", w.path, "-size", strconv.Itoa(1 << 20), "-seed", strconv.Itoa(rand.IntN(1000))}
	lines, loss, err := g.CutAfter(t.Context(), command.Cmd{Name: "/programs/durable", Args: append(append([]string{"write"}, args...), w.args...)},
		20+rand.IntN(100), time.Duration(rand.IntN(20))*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Script(t.Context(), t, w.mount)
	last := lines[len(lines)-1]
	out, err := g.Run(t.Context(), command.Cmd{Name: "/programs/durable", Args: append(append([]string{"verify"}, args...), "-synced", last)})
	t.Logf("generation %s; %d sectors not flushed, %d lost: %s", last, loss.Unflushed, loss.Lost, out)
	return err
}

func TestProgramsFilesAndServicesOfTheOutside(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := echo(listener)
	defer stop()
	g := ForTest(t, Config{Network: Network{Outside: true}})
	ctx := t.Context()

	if err := g.Put(ctx, "/work/big", make([]byte, 3*partSize/2), 0o640); err != nil {
		t.Fatal(err)
	}
	if got := g.Script(ctx, t, "stat -c '%s %a' /work/big"); got != "1572864 640\n" {
		t.Errorf("file: %q", got)
	}
	if _, err := g.Run(ctx, command.Cmd{Name: "sh", Args: []string{"-c", "echo no; echo why >&2; exit 3"}}); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v", err)
	}
	if _, err := g.Run(ctx, command.Cmd{Name: "no-such-program"}); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("error %v", err)
	}
	if out, err := g.Run(ctx, command.Cmd{Name: "sh", Args: []string{"-c", `cat; echo "$X $PWD"`}, Stdin: []byte("in "), Dir: "/work", Env: []string{"X=a b"}}); string(out) != "in a b /work\n" {
		t.Errorf("output %q, %v", out, err)
	}

	address := listener.Addr().String()
	if err := g.Forward(ctx, address); err != nil {
		t.Fatal(err)
	}
	talk(t, g, address)
	if err := g.Stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := g.Run(ctx, command.Cmd{Name: "true"}); err == nil {
		t.Error("a guest that is off runs programs")
	}
}

// echo serves connections by sending back what comes, until stop.
func echo(listener net.Listener) (stop func()) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	return func() { listener.Close(); <-served }
}

// talk reaches an echo from inside.
func talk(t *testing.T, g *Guest, address string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(address)
	script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%s; echo hello >&3; head -n 1 <&3", host, port)
	if out, err := g.Run(t.Context(), command.Cmd{Name: "bash", Args: []string{"-c", script}}); string(out) != "hello\n" {
		t.Errorf("a service of the outside: %q, %v", out, err)
	}
}

// background is for what happens after the test's own context has ended.
func background() context.Context { return context.Background() }
