package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"hayloft/cloud"
	"hayloft/internal/leaktest"
	"hayloft/server/api"
	"hayloft/server/api/client/clienttest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	testscript.Main(leakChecked{m}, map[string]func(){"hayloft": main})
}

type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	status := m.M.Run()
	if err := leaktest.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// today is when the tests take place.
var today = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// console is a command's surroundings in a test.
type console struct {
	test   *testing.T
	server *clienttest.Server
	stdin  io.Reader
	screen screen
	ctx    context.Context
	stderr io.Writer     // besides being kept
	late   chan struct{} // closed when the time of --timeout is up; nil: as the clock has it
}

// patience is for what is only slow because the machine has much else to do.
const patience = 2 * time.Minute

func newConsole(t *testing.T) *console {
	t.Setenv("HAYLOFT_ENDPOINT", "")
	return &console{test: t, server: clienttest.New(t), ctx: t.Context()}
}

// run carries out a command line and returns exit status, output and errors.
func (c *console) run(args ...string) (int, string, string) {
	c.test.Helper()
	var stdout, stderr bytes.Buffer
	a := newApp()
	a.stdin, a.stdout, a.stderr = c.stdin, &stdout, &stderr
	if c.stdin == nil {
		a.stdin = strings.NewReader("")
	}
	if c.stderr != nil {
		a.stderr = io.MultiWriter(&stderr, c.stderr)
	}
	a.now = func() time.Time { return today }
	a.screen = func(w io.Writer) screen {
		if w == &stdout {
			return c.screen
		}
		return screen{}
	}
	a.consolePatience, a.storagePatience = patience, patience
	if c.late != nil {
		a.within = func(ctx context.Context, _ time.Duration) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			go func() {
				select {
				case <-c.late:
					cancel()
				case <-ctx.Done():
				}
			}()
			return ctx, cancel
		}
	}
	status := a.run(c.ctx, append([]string{"--endpoint", c.server.Endpoint()}, args...))
	return status, stdout.String(), stderr.String()
}

// ok is run for what must succeed.
func (c *console) ok(args ...string) string {
	c.test.Helper()
	status, stdout, stderr := c.run(args...)
	if status != 0 {
		c.test.Fatalf("hayloft %s: exit status %d\n%s", strings.Join(args, " "), status, stderr)
	}
	return stdout
}

// fails is run for what must not; it returns the message, without the lines of progress that what takes long shows.
func (c *console) fails(status int, args ...string) string {
	c.test.Helper()
	got, stdout, stderr := c.run(args...)
	if got != status {
		c.test.Errorf("hayloft %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), got, status, stdout, stderr)
	}
	message := ""
	for line := range strings.Lines(stderr) {
		switch {
		case strings.HasPrefix(line, "hayloft: "):
			message += line
		case !strings.Contains(line, "s  "):
			c.test.Errorf("hayloft %s: a line without its head: %q", strings.Join(args, " "), line)
		}
	}
	return message
}

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func aVM(id int, name string, phase cloud.Phase) api.VM {
	return api.VM{
		VM: cloud.VM{ID: id, Name: name, State: phase.State, LCM: phase.LCM, HostID: -1, TemplateID: -1, CPU: 0.5, VCPU: 1, MemoryMB: 128,
			Hypervisor: "qemu", STime: today.Add(-3*time.Hour - 5*time.Minute).Unix()},
		StateName: phase.String(), StateCode: phase.Short(),
	}
}

var (
	running = cloud.Active(cloud.LCMRunning)
	boot    = cloud.Active(cloud.LCMBoot)
	prolog  = cloud.Active(cloud.LCMProlog)
	failure = cloud.Active(cloud.LCMBootFailure)
	pending = cloud.At(cloud.StatePending)
	done    = cloud.At(cloud.StateDone)
)
