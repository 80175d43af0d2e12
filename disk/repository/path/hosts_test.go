package path

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/leaktest"
)

const contenderVar = "HAYLOFT_PATH_CONTENDER" // "OPERATION NUMBER DIRECTORY" of a child process

func TestMain(m *testing.M) {
	if text := os.Getenv(contenderVar); text != "" {
		contend(text)
	}
	leaktest.Main(m)
}

// contend is a host of its own: it waits for a line, tries to get the object, says how that went, and holds what it
// got until its input ends. A writer commits then.
func contend(text string) {
	words := strings.SplitN(text, " ", 3)
	number, _ := strconv.Atoi(words[1])
	r, err := New(disk.Repository{ID: number, Path: words[2]})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx := context.Background()
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	in.ReadString('\n')
	var w repository.Writer
	switch words[0] {
	case "write":
		if w, err = r.Create(ctx, "d/a"); err == nil {
			_, err = w.WriteAt([]byte(words[1]), 0)
		}
	case "own":
		_, err = r.Own(ctx, "d/p", repository.Owner{Host: "host-" + words[1], Machine: number}, os.Getuid(), os.Getgid())
	}
	if err != nil {
		fmt.Println(fault.ClassOf(err), err)
		os.Exit(0)
	}
	fmt.Println("won")
	io.Copy(io.Discard, in)
	if w != nil {
		err = w.Commit(ctx)
	}
	fmt.Println("end", fault.ClassOf(err), err)
	os.Exit(0)
}

// host is a child process that contends.
type host struct {
	number int
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
}

func startHost(t *testing.T, operation string, number int, dir string) *host {
	t.Helper()
	h := &host{number: number, cmd: exec.Command(os.Args[0])}
	h.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", contenderVar, operation, number, dir), "GOCOVERDIR="+t.TempDir())
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.cmd.Stderr = os.Stderr
	in, err1 := h.cmd.StdinPipe()
	out, err2 := h.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, h.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	h.in, h.out = in, bufio.NewReader(out)
	t.Cleanup(h.kill)
	if line := h.line(); line != "ready" {
		t.Fatal(line)
	}
	return h
}

func (h *host) line() string {
	line, err := h.out.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func (h *host) kill() {
	h.cmd.Process.Kill()
	h.cmd.Wait()
}

// compete lets hosts, one in each of dirs, try at the same time, and gives the one that won. All others must have heard
// that the object is busy.
func compete(t *testing.T, operation string, dirs []string) *host {
	t.Helper()
	hosts := make([]*host, len(dirs))
	for i, dir := range dirs {
		hosts[i] = startHost(t, operation, i+1, dir)
	}
	answers := make([]string, len(hosts))
	var group sync.WaitGroup
	for i, h := range hosts {
		group.Go(func() {
			io.WriteString(h.in, "go\n")
			answers[i] = h.line()
		})
	}
	group.Wait()
	var winner *host
	for i, answer := range answers {
		switch {
		case answer == "won" && winner == nil:
			winner = hosts[i]
		case !strings.HasPrefix(answer, "busy "):
			t.Errorf("host %d: %s", i+1, answer)
		}
	}
	if winner == nil {
		t.Fatalf("nobody won: %q", answers)
	}
	return winner
}

// twoHosts is what holds between the hosts whose directories, all the same one, are dirs.
func twoHosts(t *testing.T, dirs []string) {
	r := open(t, dirs[0])
	for round := range 3 {
		winner := compete(t, "write", dirs)
		winner.in.Close()
		if end := winner.line(); end != "end internal <nil>" {
			t.Error(end)
		}
		if b, err := os.ReadFile(dirs[round%len(dirs)] + "/d/a"); err != nil || string(b) != strconv.Itoa(winner.number) {
			t.Errorf("%q of host %d, %v", b, winner.number, err)
		}
		if err := r.Delete(t.Context(), "d/a"); err != nil {
			t.Fatal(err)
		}
	}
	compete(t, "write", dirs).kill()
	w, err := r.Create(t.Context(), "d/a") // at once
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if w, err = r.Create(t.Context(), "d/p"); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		winner := compete(t, "own", dirs)
		m, err := r.Marked(t.Context(), "d/p")
		if err != nil || m.Machine != winner.number {
			t.Errorf("host %d won, the mark is %+v, %v", winner.number, m, err)
		}
		winner.kill() // the mark stays: the host may have writes
		if m, err := r.Marked(t.Context(), "d/p"); err != nil || m.Machine != winner.number {
			t.Errorf("%+v, %v", m, err)
		}
		if err := r.Break(t.Context(), "d/p", false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	twoHosts(t, []string{dir, dir, dir, dir})
}

// TestLockThatWasLost: a host that was away so long that the server gave its lock to another changes nothing of the
// other's when it is back.
func TestLockThatWasLost(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	create := func(content string) *writer {
		w, err := r.Create(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		return w.(*writer)
	}
	away := create("away")
	if err := syscall.Flock(int(away.lock.Fd()), syscall.LOCK_UN); err != nil { // as a server does
		t.Fatal(err)
	}
	other := create("other")
	if err := away.Commit(t.Context()); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	if err := away.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := r.Create(t.Context(), "a"); !fault.Is(err, fault.Busy) {
		t.Errorf("a third one: %v", err)
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/a"); err != nil || string(b) != "other" {
		t.Errorf("%q, %v", b, err)
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 1 {
		t.Error(e, err)
	}
}
