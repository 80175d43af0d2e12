package ssh

import (
	"os"
	"testing"

	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/internal/leaktest"
	"hayloft/lab/sshlab"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "sftp-data" {
		os.Exit(servePlain(os.Args[2:]))
	}
	leaktest.Main(m)
}

// open gives a repository on a directory of the server.
func open(t *testing.T, s *sshlab.Server, dir string, options ...string) *Repository {
	t.Helper()
	o := s.Options()
	for i := 0; i < len(options); i += 2 {
		o[options[i]] = options[i+1]
	}
	r, err := New(disk.Repository{ID: 7, Path: dir, Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestConformance(t *testing.T) {
	s := sshlab.Start(t)
	repositorytest.Run(t, func(t *testing.T) repository.Repository { return open(t, s, t.TempDir()) })
}

func TestPlainConformance(t *testing.T) {
	s := sshlab.Start(t)
	repositorytest.Run(t, func(t *testing.T) repository.Repository { return openPlain(t, s, t.TempDir()) })
}
