package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\r\n"

type request struct {
	Execute   string
	Arguments json.RawMessage
	ID        json.Number
}

// andHangUp after an answer is a QEMU that ends with it.
const andHangUp = "\x04"

// serve runs a scripted QEMU: answer returns the lines to send for a request, "" to hang up.
func serve(t *testing.T, answer func(request) string) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), strings.Repeat("long", 40), "s")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, hello)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var r request
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Errorf("client sent %q: %v", lines.Text(), err)
				return
			}
			reply := fmt.Sprintf(`{"return": {}, "id": %s}`+"\n", r.ID)
			if r.Execute != "qmp_capabilities" {
				reply = answer(r)
			}
			if reply == "" {
				return
			}
			reply, last := strings.CutSuffix(reply, andHangUp)
			io.WriteString(conn, reply)
			if last {
				return
			}
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	conn, err := DialSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func connect(t *testing.T, answer func(request) string) *Client {
	t.Helper()
	c, err := Connect(t.Context(), serve(t, answer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestExecute(t *testing.T) {
	c := connect(t, func(r request) string {
		switch r.Execute {
		case "query-status":
			// A late answer to something forgotten, and an event, come in between.
			return fmt.Sprintf(`{"return": 1, "id": 999}`+"\n"+`{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}}`+"\n"+
				`{"return": {"status": "running"}, "id": %s}`+"\r\n", r.ID)
		case "echo":
			return fmt.Sprintf(`{"return": %s, "id": %s}`+"\n", r.Arguments, r.ID)
		}
		return fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "The command %s has not been found"}, "id": %s}`+"\n", r.Execute, r.ID)
	})
	if got := c.Version().String(); got != "7.2.22" {
		t.Errorf("version %s", got)
	}
	var status struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("status %+v, %v", status, err)
	}
	e, err := c.Next(t.Context())
	if err != nil || e.Name != "STOP" || e.Time.Unix() != 5 {
		t.Errorf("event %+v, %v", e, err)
	}
	var refused *Error
	if err := c.Execute(t.Context(), "bogus", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("bogus command: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			var n int
			if err := c.Execute(t.Context(), "echo", i, &n); err != nil || n != i {
				t.Errorf("echo %d: %d, %v", i, n, err)
			}
		})
	}
	wg.Wait()
}

func TestHangUp(t *testing.T) {
	c := connect(t, func(request) string { return "" })
	if err := c.Execute(t.Context(), "quit", nil, nil); !errors.Is(err, ErrClosed) || !errors.Is(err, io.EOF) {
		t.Errorf("command on a connection that ends: %v", err)
	}
	<-c.Done()
	if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("command after the end: %v", err)
	}
	if _, err := c.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("event after the end: %v", err)
	}
}

// TestAnswerBeforeTheEnd: an answer that has come counts, though the connection ends with it.
func TestAnswerBeforeTheEnd(t *testing.T) {
	for range 20 {
		c := connect(t, func(r request) string { return fmt.Sprintf(`{"return": {}, "id": %s}`+"\n"+andHangUp, r.ID) })
		if err := c.Execute(t.Context(), "quit", nil, nil); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	c := newClient(nil, &greeting{})
	close(c.done) // both are there when they are looked at
	for range 50 {
		id := c.nextID + 1
		c.conn = answering{answer: func() { c.deliver(message{ID: &id, Return: json.RawMessage("7")}) }}
		var n int
		if err := c.Execute(t.Context(), "query", nil, &n); err != nil || n != 7 {
			t.Fatalf("%d, %v", n, err)
		}
	}
}

// answering is a connection that has answered when a line is written.
type answering struct {
	net.Conn
	answer func()
}

func (a answering) Write(p []byte) (int, error)      { a.answer(); return len(p), nil }
func (a answering) SetWriteDeadline(time.Time) error { return nil }

func TestGarbageEndsTheConnection(t *testing.T) {
	for _, line := range []string{"not json\n", "{}\n", `{"return": 1, "id": "x"}` + "\n"} {
		c := connect(t, func(request) string { return line })
		if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("after %q: %v", line, err)
		}
	}
}

func TestCommandThatIsNeverAnswered(t *testing.T) {
	block := make(chan struct{})
	c := connect(t, func(request) string { <-block; return "" })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(block)
}

func TestHandshake(t *testing.T) {
	for name, greeting := range map[string]string{"silent": "", "not a greeting": `{"return": {}}` + "\n", "garbage": "SSH-2.0\n"} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			var wg sync.WaitGroup
			wg.Go(func() { io.WriteString(theirs, greeting) })
			defer wg.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if _, err := Connect(ctx, ours); err == nil {
				t.Error("connected")
			}
		})
	}
}

func TestEventsNobodyFetches(t *testing.T) {
	c := connect(t, func(r request) string {
		return strings.Repeat(`{"event": "RTC_CHANGE"}`+"\n", maxEvents+5) + fmt.Sprintf(`{"return": {}, "id": %s}`+"\n", r.ID)
	})
	if err := c.Execute(t.Context(), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	if e, err := c.Next(t.Context()); err != nil || e.Name != EventsLost {
		t.Errorf("first event %+v, %v; want the one that says that some were lost", e, err)
	}
}

func TestSendFile(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	ours, theirs := conn(pair[0]), conn(pair[1])
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		io.WriteString(theirs, hello)
		buf, oob := make([]byte, 4096), make([]byte, 256)
		theirs.Read(buf)
		io.WriteString(theirs, `{"return": {}, "id": 1}`+"\n")
		_, n, _, _, err := theirs.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Error(err)
			return
		}
		msgs, _ := unix.ParseSocketControlMessage(oob[:n])
		if len(msgs) != 1 {
			t.Errorf("%d control messages", len(msgs))
			return
		}
		fds, _ := unix.ParseUnixRights(&msgs[0])
		got := os.NewFile(uintptr(fds[0]), "got")
		defer got.Close()
		io.WriteString(got, "hello")
		io.WriteString(theirs, `{"return": {}, "id": 2}`+"\n")
	})
	c, err := Connect(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.SendFile(t.Context(), "state", f); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(f.Name()); string(text) != "hello" {
		t.Errorf("the file holds %q", text)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(hello))
	f.Add([]byte(`{"return": {"status": "running"}, "id": 1}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "x"}, "id": 2}`))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"guest": true}, "timestamp": {"seconds": -1, "microseconds": -1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			return
		}
		if m.Greeting == nil && m.Event == "" && m.Return == nil && m.Failure == nil {
			t.Errorf("accepted %q as nothing", line)
		}
		if e := m.event(); e.Data != nil && !json.Valid(e.Data) {
			t.Errorf("event data %q", e.Data)
		}
	})
}
