package etcd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// helperDir in the environment makes the test binary a process that writes to a store in that directory
// until it is killed.
const helperDir = "HAYLOFT_ETCD_TEST_DIR"

// helper writes pairs of records and prints the number of each when it is acknowledged.
func helper(dir string) {
	ctx := context.Background()
	s, err := Embedded(ctx, Config{Dir: dir, ElectionTTL: time.Hour}) // nobody waits for the end of that
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(fault.ClassOf(err).ExitStatus())
	}
	if _, err := s.Campaign(ctx, "boss", "helper"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(fault.ClassOf(err).ExitStatus())
	}
	for i := 0; ; i++ {
		value := []byte(strconv.Itoa(i))
		if _, err := s.Txn(ctx, nil, []store.Op{store.Put("left", value), store.Put("right", value)}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

func startHelper(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	cmd, out := startHelper(t, dir)
	acknowledged := -1
	for acknowledged < 300 && out.Scan() {
		acknowledged, _ = strconv.Atoi(out.Text())
	}
	if _, err := Embedded(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.Busy) {
		t.Fatalf("a directory in use: %v", err)
	} else {
		t.Log(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for out.Scan() {
		if n, err := strconv.Atoi(out.Text()); err == nil {
			acknowledged = n
		}
	}
	cmd.Wait()
	s := embedded(t, Config{Dir: dir})
	left, err := s.Get(t.Context(), "left")
	if err != nil {
		t.Fatal(err)
	}
	right, err := s.Get(t.Context(), "right")
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := strconv.Atoi(string(left.Value))
	if string(left.Value) != string(right.Value) || left.Revision != right.Revision || kept < acknowledged || kept > acknowledged+1 {
		t.Errorf("acknowledged %d, found %q at %d and %q at %d", acknowledged, left.Value, left.Revision, right.Value, right.Revision)
	}
	begin := time.Now()
	if _, err := s.Campaign(t.Context(), "boss", "next"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("the killed process kept its leadership for %v", took)
	}
}

// TestDamagedLog is in a process of its own, as etcd leaves files open when it gives up on its log.
func TestDamagedLog(t *testing.T) {
	dir := t.TempDir()
	s := embedded(t, Config{Dir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	overwrite(t, logs[0])
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	said, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != fault.Corrupt.ExitStatus() || !strings.Contains(string(said), "cannot start from the data in "+dir) {
		t.Errorf("%v: %s", err, said)
	}
}
