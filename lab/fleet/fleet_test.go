package fleet

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[99-i] = i + 1
	}
	for _, tt := range []struct {
		values        []int
		p50, p99, max int
	}{
		{nil, 0, 0, 0},
		{[]int{7}, 7, 7, 7},
		{[]int{3, 1, 2}, 2, 3, 3},
		{hundred, 50, 99, 100},
	} {
		got := [3]int{Percentile(tt.values, 50), Percentile(tt.values, 99), Percentile(tt.values, 100)}
		if got != [3]int{tt.p50, tt.p99, tt.max} {
			t.Errorf("of %d values: %v, want %d, %d, %d", len(tt.values), got, tt.p50, tt.p99, tt.max)
		}
	}
}

func TestStages(t *testing.T) {
	at := func(ms int64) int64 { return time.Unix(100, 0).UnixNano() + ms*1e6 }
	var m Machine
	m.Timing = cloud.Timing{Submitted: at(0), Scheduled: at(1), PrologStart: at(3), PrologEnd: at(7), BootStart: at(8), BootEnd: at(15)}
	m.Answered = time.Unix(0, at(1015))
	silent := m
	silent.Answered = time.Time{}
	want := map[string]time.Duration{"scheduling": 1e6, "waiting": 2e6, "PROLOG": 4e6, "BOOT": 8e6, "first SSH answer": 1e9, "all": 1015e6}
	for _, s := range Stages([]Machine{m, silent}) {
		if s.P50 != want[s.Name] || s.P99 != want[s.Name] {
			t.Errorf("%s: %v and %v, want %v", s.Name, s.P50, s.P99, want[s.Name])
		}
		delete(want, s.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestProcessNamesItsDirectory(t *testing.T) {
	p := process{line: "/x/hayloft server --state-dir /tmp/run-ab/state"}
	for dir, want := range map[string]bool{"/tmp/run-ab": true, "/tmp/run-a": false, "/tmp/run-ab/state": true, "": false} {
		if got := p.names(dir); got != want {
			t.Errorf("names(%q) = %v", dir, got)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134`: `/a\`, `/a\9`: `/a\9`, "/plain": "/plain"} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestShapeFits(t *testing.T) {
	for n := 1; n <= 200; n++ {
		if s := DefaultShape(n, 2); s.CPU*float64(n) > 2 || s.CPU <= 0 {
			t.Errorf("%d machines of %v cores do not fit on 2", n, s.CPU)
		}
	}
}

// TestSite makes a site with everything that a run makes, sees it all, and sees nothing after Close.
func TestSite(t *testing.T) {
	labtest.Root(t, "sleep")
	defer func() {
		if err := leaktest.Find(); err != nil {
			t.Error(err)
		}
	}()
	s, err := NewSite("test", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			_ = s.Close(context.Background())
		}
	}()
	sleeper := exec.Command("sleep", "1000")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = s.Namespace.Inside(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sitebr"}}); err != nil {
			return err
		}
		return sleeper.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	reaped := make(chan error, 1)
	go func() { reaped <- sleeper.Wait() }()
	listener, err := net.Listen("unix", filepath.Join(s.Dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	if n := threadsIn(s.Namespace); n < probeThreads {
		t.Errorf("%d threads in the namespace, want %d that probe at least", n, probeThreads)
	}
	checks, err := leftoversNow(s.before, s.record)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		expected := c.What == "processes" || c.What == "mounts" || c.What == "sockets" || strings.HasPrefix(c.What, "files")
		if found := len(c.Left) > 0; found != expected {
			t.Errorf("while it runs, %s: %q", c.What, c.Left)
		}
	}
	if links, err := netlink.LinkByName("sitebr"); err == nil {
		t.Errorf("the bridge is in the machine's own network: %v", links)
	}
	listener.Close()
	closed = true
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-reaped; err == nil {
		t.Error("sleep ended by itself")
	}
	if checks, err = s.Leftovers(); err != nil || len(Found(checks)) > 0 {
		t.Errorf("after Close: %v, %q", err, Found(checks))
	}
	eventually(t, "no threads in the namespace", func() error {
		if n := threadsIn(s.Namespace); n > 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// threadsIn counts the threads of this process that are in a network namespace.
func threadsIn(n *Namespace) (count int) {
	links, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, link := range links {
		if inode, err := inodeOf(link); err == nil && inode == n.Inode { // one that has just ended is nowhere
			count++
		}
	}
	return count
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s: %v", what, err)
			return
		}
	}
}

// TestKilledRun: what a killed run left is found by its record and taken down; that of a living one is not.
func TestKilledRun(t *testing.T) {
	labtest.Root(t)
	s, err := NewSite("killed", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.Prober.Close()
	if runs, err := Runs("killed", true); err != nil || len(runs) != 0 {
		t.Errorf("a run whose owner lives is stale: %v, %v", runs, err)
	}
	s.record.OwnerStart++ // another process with our number
	if err := s.record.write(); err != nil {
		t.Fatal(err)
	}
	runs, err := Runs("killed", false)
	if err != nil || len(runs) != 1 || runs[0].Name() != s.Name {
		t.Fatalf("runs %v, %v", runs, err)
	}
	s.record.Keep = true
	if err := s.record.write(); err != nil {
		t.Fatal(err)
	}
	if runs, err := Runs("killed", false); err != nil || len(runs) != 0 {
		t.Errorf("a run that was left running on purpose counts as killed: %v, %v", runs, err)
	}
	checks, err := runs[0].TakeDown(t.Context())
	if err != nil || len(Found(checks)) > 0 {
		t.Errorf("%v, %q", err, Found(checks))
	}
	if runs, err := Runs("killed", true); err != nil || len(runs) != 0 {
		t.Errorf("it is still recorded: %v, %v", runs, err)
	}
}

func TestProgramMissing(t *testing.T) {
	if _, err := Start(t.Context(), Config{Binary: filepath.Join(t.TempDir(), "absent")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v, want not found", err)
	}
}

// TestProbeOfNobody ends with ctx and says why.
func TestProbeOfNobody(t *testing.T) {
	labtest.Root(t)
	s, err := NewSite("probe", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	err = s.Namespace.Inside(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probebr"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	target := Target{Name: "nobody", IP: "10.66.0.10", MAC: "02:00:0a:42:00:0a", Bridge: "probebr"}
	if _, err := s.Prober.Answers(ctx, target); err == nil || !strings.Contains(err.Error(), "it has sent nothing") {
		t.Errorf("%v", err)
	}
	target.Bridge = "absent"
	if _, err := s.Prober.Answers(t.Context(), target); err == nil || !strings.Contains(err.Error(), "bridge absent") {
		t.Errorf("%v", err)
	}
}

func TestWhoeverLooksAroundIsNoLeftover(t *testing.T) {
	const name = "hayloft-demo-abc"
	for environment, want := range map[string]bool{
		"A=1\x00HAYLOFT_ENDPOINT=unix:///tmp/hayloft-demo-abc/api.sock\x00PWD=/tmp/hayloft-demo-abc\x00": false,
		"A=1\x00HAYLOFT_NETNS=hayloft-demo-abc\x00":                                                      true,
		"": false,
	} {
		if got := bears(environment, name); got != want {
			t.Errorf("%q: %v", environment, got)
		}
	}
}
