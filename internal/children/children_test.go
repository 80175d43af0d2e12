package children

import (
	"bufio"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestChildrenAndTheirs(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; sleep 1000 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var sleeps []int
	lines := bufio.NewScanner(out)
	for range 2 {
		lines.Scan()
		pid, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
		if err != nil {
			t.Fatal(err)
		}
		sleeps = append(sleeps, pid)
	}
	t.Cleanup(func() {
		for _, pid := range append(sleeps, cmd.Process.Pid) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		_ = cmd.Wait()
	})
	slices.Sort(sleeps)
	if got := Of(cmd.Process.Pid); !slices.Equal(got, sleeps) {
		t.Errorf("children %v, want %v", got, sleeps)
	}
	if got := Of(os.Getpid()); !slices.Contains(got, cmd.Process.Pid) {
		t.Errorf("%d is not among %v", cmd.Process.Pid, got)
	}
	all := Under(os.Getpid())
	for _, pid := range append(slices.Clone(sleeps), cmd.Process.Pid) {
		if !slices.Contains(all, pid) {
			t.Errorf("%d is not among %v", pid, all)
		}
	}
	if got := Of(sleeps[0]); got != nil {
		t.Errorf("sleep has children: %v", got)
	}
}

// TestWhileOthersEnd: a child that stays is seen whatever its siblings do.
func TestWhileOthersEnd(t *testing.T) {
	stays := exec.Command("sleep", "1000")
	if err := stays.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stays.Process.Kill(); _ = stays.Wait() }()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command("true").Run()
			}
		}
	}()
	for range 50 {
		if !slices.Contains(Of(os.Getpid()), stays.Process.Pid) {
			t.Error("a child that lives is not seen")
			break
		}
	}
	close(stop)
	<-done
}
