// Package rgwlab is a real S3 server for tests: Ceph's RADOS gateway on a cluster of package cephlab. It needs root and
// the Debian package radosgw besides those of cephlab.
package rgwlab

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hayloft/lab/cephlab"
	"hayloft/lab/labtest"
)

// Who may do everything.
const (
	AccessKey = "hay"
	SecretKey = "s3cret"
)

const startLimit = 2 * time.Minute

// Server has one bucket, and ends with the test.
type Server struct {
	Endpoint string // URL of the bucket
	Core     *minio.Core
	Bucket   string
}

// Start returns when the bucket is there.
func Start(t testing.TB) *Server {
	t.Helper()
	labtest.Root(t, "radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph")
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	dir, err := os.MkdirTemp("", "rgw") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cluster, err := cephlab.Start(ctx, cephlab.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	if out, err := cluster.Run(ctx, "radosgw-admin", "user", "create", "--uid=hay", "--display-name=hay", "--access-key="+AccessKey, "--secret-key="+SecretKey); err != nil {
		t.Fatal(out, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	daemon(t, dir, "radosgw", "-f", "--conf", cluster.Conf, "--keyring", cluster.Keyring, "--name", "client.admin",
		"--rgw-frontends", "beast endpoint="+address, "--log-file", filepath.Join(dir, "rgw.log"))
	s := &Server{Bucket: "images", Endpoint: "http://" + address + "/images"}
	s.Core, err = minio.NewCore(address, &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: "us-east-1", MaxRetries: 1})
	if err != nil {
		t.Fatal(err)
	}
	for {
		err := s.Core.MakeBucket(ctx, s.Bucket, minio.MakeBucketOptions{})
		if err == nil {
			return s
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("radosgw does not answer: %v", err)
		}
	}
}

func daemon(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var text strings.Builder
	cmd.Stderr = &text
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	ended := make(chan struct{})
	go func() { // the daemon dies with the thread that started it
		runtime.LockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "rgw.log"))
			t.Logf("radosgw: %s\n%s", text.String(), tail(log))
		}
	})
}

func tail(log []byte) []byte { return log[max(0, len(log)-4000):] }
