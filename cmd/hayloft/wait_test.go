package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// living makes the server carry out actions at once, by way of some states.
func living(c *console, action string, id int, through ...cloud.Phase) {
	c.server.Answer(fmt.Sprintf("POST /v1/vms/%d/action", id), func(_ *http.Request, body []byte) (any, error) {
		if string(body) != fmt.Sprintf("{\"action\":%q}", action) {
			return nil, fault.Errorf(fault.Invalid, "unexpected %s", body)
		}
		for _, phase := range through {
			vm := aVM(id, fmt.Sprint("web-", id), phase)
			if phase == failure || phase == running {
				vm.Error = "the guest says no"
			}
			c.server.Put(cloud.KindVM, vm)
		}
		return nil, nil
	})
}

func TestWaitsForActions(t *testing.T) {
	c := newConsole(t)
	c.server.Put(cloud.KindVM, aVM(3, "web-3", running))
	c.server.Put(cloud.KindVM, aVM(4, "web-4", running))
	off, shutdown := cloud.At(cloud.StatePoweroff), cloud.Active(cloud.LCMShutdownPoweroff)
	living(c, "poweroff", 3, shutdown, off)
	living(c, "poweroff", 4, shutdown, running)
	if out := c.ok("vm", "poweroff", "3", "--wait"); out != "" {
		t.Errorf("it says %q", out)
	}
	message := c.fails(fault.WrongState.ExitStatus(), "vm", "poweroff", "3,4", "--wait")
	if !strings.Contains(message, "vm 4 (web-4) is RUNNING, not POWEROFF: the guest says no") {
		t.Errorf("a guest that refuses: %q", message)
	}
	living(c, "resume", 5, cloud.Active(cloud.LCMBootPoweroff), failure)
	c.server.Put(cloud.KindVM, aVM(5, "web-5", off))
	if message := c.fails(fault.WrongState.ExitStatus(), "vm", "resume", "5", "--wait"); !strings.Contains(message, "vm 5 (web-5) is BOOT_FAILURE: the guest says no") {
		t.Errorf("a failed boot: %q", message)
	}
	living(c, "terminate-hard", 6, done)
	c.server.Put(cloud.KindVM, aVM(6, "web-6", prolog))
	c.ok("vm", "terminate", "web-6", "--hard", "--wait")
}

func TestGoals(t *testing.T) {
	sure := func(word string, strict bool) goal {
		g, err := goalOf(word)
		if err != nil {
			t.Fatal(err)
		}
		g.strict = strict
		return g
	}
	rest, decided := goal{rest: true}, goal{rest: true, failure: true}
	for _, row := range []struct {
		goal    goal
		phase   cloud.Phase
		reached bool
		refused bool
	}{
		{sure("running", true), running, true, false},
		{sure("running", true), pending, false, false},
		{sure("running", true), boot, false, false},
		{sure("running", true), failure, false, true},
		{sure("running", true), cloud.At(cloud.StateHold), false, true},
		{sure("running", false), cloud.At(cloud.StateHold), false, false},
		{sure("running", false), done, false, true},
		{sure("running", true), cloud.Active(cloud.LCMUnknown), false, false},
		{sure("running", true), cloud.At(cloud.StateCloningFailure), false, true},
		{sure("poweroff", true), running, false, true},
		{sure("poweroff", false), running, false, false},
		{sure("done", true), done, true, false},
		{sure("done", true), running, false, true},
		{sure("done", false), running, false, false},
		{rest, running, true, false},
		{rest, prolog, false, false},
		{rest, failure, false, true},
		{decided, failure, true, false},
	} {
		reached, err := row.goal.reached(aVM(1, "x", row.phase))
		if reached != row.reached || (err != nil) != row.refused {
			t.Errorf("%+v at %s: %v, %v", row.goal, row.phase, reached, err)
		}
	}
}

func TestCreateWaitsForSSH(t *testing.T) {
	c := newConsole(t)
	c.server.Answer("POST /v1/vms", func(*http.Request, []byte) (any, error) {
		for id := 20; id < 23; id++ {
			c.server.Put(cloud.KindVM, aVM(id, fmt.Sprint("web-", id), running))
		}
		return api.CreatedVMs{IDs: []int{20, 21, 22}}, nil
	})
	var tries atomic.Int64
	c.server.Tunnel(func(id int, kind string, port int) error {
		if kind != client.TunnelTCP || port != 22 {
			return fault.Errorf(fault.Invalid, "unexpected tunnel %s %d", kind, port)
		}
		if tries.Add(1) <= 2 {
			return fault.Errorf(fault.Unavailable, "vm %d: port 22: connection refused", id)
		}
		return nil
	}, func(conn net.Conn, _ string) { fmt.Fprint(conn, "SSH-2.0-dropbear\r\n") })
	if out := c.ok("vm", "create", "web", "--count", "3", "--wait=ssh", "--timeout", "10m"); out != "IDs: 20..22\n" {
		t.Errorf("%q", out)
	}
	if tries.Load() < 5 {
		t.Errorf("%d tries", tries.Load())
	}
}

// A guest that never boots: the message names its state and what it said last.
func TestWaitTimesOut(t *testing.T) {
	c := newConsole(t)
	stuck, waits := aVM(3, "stuck", running), aVM(4, "waits", pending)
	waits.SchedMessage = "host a has 1 CPU, 2 wanted"
	c.server.Put(cloud.KindVM, stuck)
	c.server.Put(cloud.KindVM, waits)
	// Its time is up when both machines were shown and the second try has begun.
	c.late = make(chan struct{})
	var due sync.WaitGroup
	due.Add(2)
	go func() {
		due.Wait()
		close(c.late)
	}()
	c.stderr = &signalling{on: "2 machines: 1 pending, 1 running", done: sync.OnceFunc(due.Done)}
	var tries atomic.Int64
	c.server.Tunnel(func(_ int, kind string, _ int) error {
		if kind == client.TunnelTCP && tries.Add(1) == 2 {
			due.Done()
		}
		return nil
	}, func(conn net.Conn, kind string) {
		if kind == client.TunnelConsoleLog {
			fmt.Fprint(conn, "Linux\r\nKernel panic - not \x1b[1msyncing\r\n\n")
			return
		}
		fmt.Fprint(conn, "220 smtp ready\r\n")
	})
	message := c.fails(fault.Unavailable.ExitStatus(), "vm", "wait", "3..4", "--for", "ssh", "--timeout", "4s")
	for _, want := range []string{
		`vm 3 (stuck) is RUNNING after 4s, and does not answer SSH: port 22 says "220 smtp ready", which is not SSH; last line on its console: "Kernel panic - not [1msyncing"`,
		"vm 4 (waits) is PENDING after 4s: host a has 1 CPU, 2 wanted",
	} {
		if !strings.Contains(message, want) {
			t.Errorf("%s\nwant %s", message, want)
		}
	}
}

// A machine that stops while it is probed is not waited for any longer.
func TestProbeGivesUp(t *testing.T) {
	c := newConsole(t)
	c.server.Put(cloud.KindVM, aVM(3, "web", running))
	c.server.Tunnel(func(int, string, int) error {
		c.server.Put(cloud.KindVM, aVM(3, "web", cloud.At(cloud.StatePoweroff)))
		return fault.Errorf(fault.WrongState, "vm 3 is not running")
	}, nil)
	if message := c.fails(fault.WrongState.ExitStatus(), "vm", "wait", "3", "--for", "ssh"); !strings.Contains(message, "vm 3 (web) is POWEROFF, not RUNNING") {
		t.Error(message)
	}
}

func TestImageImport(t *testing.T) {
	c := newConsole(t)
	image := func(state cloud.ImageState, problem string) api.Image {
		return api.Image{Image: cloud.Image{ID: 7, Name: "tiny", State: state, Error: problem, Size: 64 * mebi}, StateName: state.String(), Done: 5, Total: 10}
	}
	result := image(cloud.ImageStateReady, "")
	c.server.Answer("POST /v1/images", func(*http.Request, []byte) (any, error) {
		c.server.Put(cloud.KindImage, image(cloud.ImageStateLocked, ""))
		c.server.Put(cloud.KindImage, result)
		return api.Created{ID: 7}, nil
	})
	if out := c.ok("image", "create", "--path", "/tiny.img"); out != "ID: 7\n" {
		t.Errorf("%q", out)
	}
	result = image(cloud.ImageStateError, "digest is sha256:1, expected sha256:2")
	if message := c.fails(1, "image", "create", "--path", "/tiny.img"); message != "hayloft: image 7 (tiny): digest is sha256:1, expected sha256:2\n" {
		t.Errorf("%q", message)
	}
	c.server.Answer("DELETE /v1/images/7", func(*http.Request, []byte) (any, error) {
		c.server.Drop(cloud.KindImage, 7)
		return nil, nil
	})
	c.ok("image", "delete", "tiny", "--wait")
}

// signalling ends a context when something has been written.
type signalling struct {
	on   string
	done context.CancelFunc
	seen bytes.Buffer
}

func (s *signalling) Write(p []byte) (int, error) {
	if s.seen.Write(p); strings.Contains(s.seen.String(), s.on) {
		s.done()
	}
	return len(p), nil
}

// Output that is no terminal gets a line of progress, and Ctrl-C ends with 130.
func TestProgressLinesAndInterrupt(t *testing.T) {
	c := newConsole(t)
	c.server.Put(cloud.KindVM, aVM(3, "web", boot))
	c.server.Put(cloud.KindVM, aVM(4, "web", prolog))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.ctx, c.stderr = ctx, &signalling{on: "2 machines: 1 prolog, 1 boot\n", done: cancel}
	status, _, stderr := c.run("vm", "wait", "3..4")
	if status != interrupted || !strings.HasSuffix(stderr, "hayloft: interrupted\n") {
		t.Errorf("%d, %q", status, stderr)
	}
}

// A terminal gets bars, which end as they are.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	a := newApp()
	a.stderr, a.screen = &out, func(io.Writer) screen { return screen{width: 80, height: 24} }
	m := a.newMeter()
	for n := range int64(3) {
		m.update(fmt.Sprintf("step %d", n), stage{"placed", 3, 3}, stage{"running", n, 3})
	}
	m.end("3 machines running")
	m.close()
	for _, want := range []string{"placed", "3/3", "running", "2/3", "3 machines running ("} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

func TestQuietSaysNothing(t *testing.T) {
	var out bytes.Buffer
	a := newApp()
	a.stderr, a.quiet, a.screen = &out, true, func(io.Writer) screen { return screen{width: 80} }
	m := a.newMeter()
	m.update("step", stage{"placed", 1, 3})
	m.end("done")
	if out.Len() > 0 {
		t.Errorf("%q", out.String())
	}
}

func TestRate(t *testing.T) {
	now := today
	r := rate{now: func() time.Time { return now }}
	var said []string
	for _, done := range []int64{0, 100 * mebi, 300 * mebi} {
		said = append(said, r.text(done, 400*mebi))
		now = now.Add(time.Second)
	}
	if got := strings.Join(said, "|"); got != "0B of 400M|100M of 400M, 100M/s|300M of 400M, 200M/s" {
		t.Error(got)
	}
}

func TestWatchedList(t *testing.T) {
	c := newConsole(t)
	c.server.Put(cloud.KindVM, aVM(3, "web", boot))
	c.server.Put(cloud.KindVM, aVM(2, "old", done))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := newApp()
	steps := []func(){
		func() { c.server.Put(cloud.KindVM, aVM(3, "web", running)) },
		func() { c.server.Put(cloud.KindVM, aVM(3, "web", done)) },
		cancel,
	}
	out := &stepping{steps: steps}
	a.stdout, a.stderr, a.now = out, io.Discard, func() time.Time { return today }
	if status := a.run(ctx, []string{"--endpoint", c.server.Endpoint(), "vm", "list", "--watch"}); status != interrupted {
		t.Errorf("exit status %d", status)
	}
	want := "ID NAME     STAT CPU  MEM HOST   IP                  TIME\n 3 web      boot 0.5 128M                        0d 03h05\n 3 web      runn 0.5 128M                        0d 03h05\n3 web is no longer in the list\n"
	if got := out.String(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// A terminal's list is drawn over itself, and no longer than the terminal.
func TestRedrawnList(t *testing.T) {
	c := newConsole(t)
	for id := range 9 {
		c.server.Put(cloud.KindVM, aVM(id, "web", boot))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := newApp()
	out := &stepping{steps: []func(){func() { c.server.Put(cloud.KindVM, aVM(0, "web", running)) }, cancel}}
	a.stdout, a.stderr, a.now = out, io.Discard, func() time.Time { return today }
	a.screen = func(io.Writer) screen { return screen{width: 60, height: 5} }
	if status := a.run(ctx, []string{"--endpoint", c.server.Endpoint(), "vm", "list", "--watch"}); status != interrupted {
		t.Errorf("exit status %d", status)
	}
	head := "ID NAME STAT CPU  MEM HOST IP     TIME\n"
	tail := " 1 web  boot 0.5 128M         0d 03h05\n... and 7 more\n"
	want := head + " 0 web  boot 0.5 128M         0d 03h05\n" + tail + "\x1b[4A\x1b[J" + head + " 0 web  runn 0.5 128M         0d 03h05\n" + tail
	if got := out.String(); got != want {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}

// stepping does the next step at each write.
type stepping struct {
	bytes.Buffer
	steps []func()
}

func (s *stepping) Write(p []byte) (int, error) {
	n, err := s.Buffer.Write(p)
	if len(s.steps) > 0 {
		s.steps[0]()
		s.steps = s.steps[1:]
	}
	return n, err
}

func TestConsole(t *testing.T) {
	c := newConsole(t)
	c.server.Put(cloud.KindVM, aVM(3, "web", running))
	c.server.Tunnel(func(int, string, int) error { return nil }, func(conn net.Conn, kind string) {
		if kind == client.TunnelConsoleLog {
			fmt.Fprint(conn, "booted\r\n")
			return
		}
		heard := make([]byte, 6)
		_, _ = io.ReadFull(conn, heard)
		fmt.Fprintf(conn, "heard %s", heard)
		if string(heard) != "uname\n" {
			_, _ = io.Copy(io.Discard, conn)
		}
	})
	c.stdin = strings.NewReader("uname\n")
	if got := c.ok("vm", "console", "3", "--linger", "1h"); got != "heard uname\n" {
		t.Errorf("%q", got)
	}
	c.stdin = strings.NewReader("uptime\n")
	c.ok("vm", "console", "3", "--linger", "10ms") // ends by itself, whether or not it was quick enough to hear anything
	left, right := net.Pipe()
	go func() { fmt.Fprint(right, "unam\x1de\n") }()
	c.stdin = left
	c.ok("vm", "console", "web") // does not end but for ^]
	right.Close()
	if got := c.ok("vm", "log", "3"); got != "booted\r\n" {
		t.Errorf("%q", got)
	}
}

func TestTunnel(t *testing.T) {
	c := newConsole(t)
	c.server.Tunnel(func(id int, _ string, port int) error {
		if port != 80 {
			return fault.Errorf(fault.Unavailable, "vm %d: port %d: connection refused", id, port)
		}
		return nil
	}, func(conn net.Conn, _ string) {
		text, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "got %s", text)
	})
	c.stdin = strings.NewReader("GET /")
	if got := c.ok("vm", "tunnel", "3", "80"); got != "got GET /" {
		t.Errorf("%q", got)
	}
	if message := c.fails(fault.Unavailable.ExitStatus(), "vm", "tunnel", "3", "81"); !strings.Contains(message, "vm 3: port 81: connection refused") {
		t.Error(message)
	}
}

func TestVNC(t *testing.T) {
	c := newConsole(t)
	vm := aVM(3, "desktop", running)
	vm.Graphics = &cloud.Graphics{Type: "vnc", Password: "secret"}
	c.server.Put(cloud.KindVM, vm)
	c.server.Tunnel(func(int, string, int) error { return nil }, func(conn net.Conn, _ string) { fmt.Fprint(conn, "RFB 003.008\n") })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, write := io.Pipe()
	a := newApp()
	a.stdout, a.stderr = write, io.Discard
	ended := make(chan int)
	go func() { ended <- a.run(ctx, []string{"--endpoint", c.server.Endpoint(), "vm", "vnc", "desktop"}) }()
	var address, password string
	if _, err := fmt.Fscanf(read, "vm 3: vnc://%s\npassword: %s\n", &address, &password); err != nil || password != "secret" {
		t.Fatal(err, password)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); err != nil || string(text) != "RFB 003.008\n" {
		t.Errorf("%q, %v", text, err)
	}
	conn.Close()
	cancel()
	if status := <-ended; status != interrupted {
		t.Errorf("exit status %d", status)
	}
}

func TestNoServer(t *testing.T) {
	c := newConsole(t)
	c.server.Stop()
	if err := os.Remove(c.server.Socket); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	message := c.fails(fault.Unavailable.ExitStatus(), "host", "list")
	if want := `hayloft: no server: is "hayloft up" running? There is no socket at ` + c.server.Socket + "\n"; message != want {
		t.Errorf("%q", message)
	}
	if got := c.ok("__complete", "vm", "show", ""); got != ":4\n" {
		t.Errorf("completion without a server: %q", got)
	}
	c.server.Start()
}
