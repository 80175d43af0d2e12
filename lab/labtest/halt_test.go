package labtest

import (
	"bufio"
	"io"
	"os/exec"
	"syscall"
	"testing"
)

// TestHalt: what is stopped says nothing more until it goes on.
func TestHalt(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewReader(out)
	for range 100 {
		if halted(cmd.Process.Pid) {
			t.Fatal("halted, and nobody did it")
		}
		if err := Halt(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if !halted(cmd.Process.Pid) {
			t.Fatal("not halted")
		}
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, "x\n"); err != nil {
			t.Fatal(err)
		}
		if text, err := lines.ReadString('\n'); text != "x\n" || err != nil {
			t.Fatal(text, err)
		}
	}
	if err := Halt(1 << 30); err == nil {
		t.Error("a process that there is not")
	}
}
