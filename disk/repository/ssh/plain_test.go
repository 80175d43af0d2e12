package ssh

import (
	"context"
	"fmt"
	"os"
	"testing"

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
