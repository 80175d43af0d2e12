package ssh

import (
	"context"
	"fmt"
	"os"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/ssh/plaindata"
	"hayloft/lab/sshlab"
)

// servePlain makes this test's own program the storage server's end.
func servePlain(args []string) int {
	if len(args) != 2 || args[0] != "--base" {
		fmt.Fprintln(os.Stderr, "bad arguments", args)
		return 2
	}
	c := plaindata.ServerConfig{Base: args[1], Stdin: os.Stdin, Stdout: os.Stdout}.OfSSH(os.Getenv("SSH_CONNECTION"))
	if err := plaindata.Serve(context.Background(), c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func openPlain(t *testing.T, s *sshlab.Server, dir string) *Repository {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return open(t, s, dir, "PLAIN_DATA", "YES", "REMOTE_PROGRAM", program)
}

// TestPlainIsUsed: where the datastore allows it the bytes leave the SSH connection, where it does not they never do.
func TestPlainIsUsed(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	const size = 16 << 20
	for _, r := range []*Repository{open(t, s, dir), open(t, s, dir, "PLAIN_DATA", "NO"), openPlain(t, s, dir)} {
		if r.plain {
			if err := os.Remove(dir + "/a"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(dir + "/a"); err != nil {
			put(t, r, "a", noise(size))
		}
		src, err := r.Open(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := src.ReadAt(make([]byte, size), 0); err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		for _, l := range r.links {
			if runs := l.plain.way != nil; runs != r.plain {
				t.Errorf("PLAIN_DATA %v, and the unencrypted way is %v", r.plain, runs)
			}
		}
		r.mu.Unlock()
		if _, knows := src.(repository.Extents); knows != r.plain {
			t.Errorf("PLAIN_DATA %v, and it knows its holes: %v", r.plain, knows)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPlainThatCannotBe(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	put(t, open(t, s, dir), "a", []byte("x"))
	for program, word := range map[string]string{"no-such-program": "no-such-program is not installed", "true": "says nothing", "echo": `says "sftp-data`} {
		r := open(t, s, dir, "PLAIN_DATA", "YES", "REMOTE_PROGRAM", program)
		_, err := r.Open(t.Context(), "a")
		class(t, "open", err, fault.Unsupported, "datastore 7", "PLAIN_DATA", word)
		_, err = r.Create(t.Context(), "b")
		class(t, "create", err, fault.Unsupported, "PLAIN_DATA", word)
		if got := files(t, dir); got != "a" {
			t.Errorf("left: %s", got)
		}
	}
}
