// Package rgwlab is a real S3 server for tests and benchmarks: Ceph's RADOS gateway on a cluster of package cephlab. It needs root
// and the Debian package radosgw besides those of cephlab.
package rgwlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hayloft/internal/undo"
	"hayloft/lab/cephlab"
	"hayloft/lab/labtest"
	"hayloft/lab/port"
)

// Who may do everything, in which region.
const (
	AccessKey = "hay"
	SecretKey = "s3cret"
	Region    = "us-east-1"
)

const startLimit = 5 * time.Minute

// Server has one bucket, until Close.
type Server struct {
	Endpoint string // URL of the bucket
	Core     *minio.Core
	Bucket   string

	dir  string
	ends undo.Stack
}

// Start starts one that ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	labtest.Root(t, "radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph")
	dir, err := os.MkdirTemp("", "rgw") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := New(t.Context(), cephlab.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(s.words())
		}
	})
	return s
}

// New is Start without a test, on a cluster as configured: it returns when the bucket is there.
func New(ctx context.Context, config cephlab.Config) (_ *Server, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	s := &Server{Bucket: "images", dir: config.Dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	cluster, err := cephlab.Start(ctx, config)
	if err != nil {
		return nil, err
	}
	s.ends.Push(cluster.Close)
	if out, err := cluster.Run(ctx, "radosgw-admin", "user", "create", "--uid=hay", "--display-name=hay", "--access-key="+AccessKey, "--secret-key="+SecretKey); err != nil {
		return nil, fmt.Errorf("%s: %w", out, err)
	}
	number, err := port.Free("127.0.0.1")
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", number)
	s.Endpoint = "http://" + address + "/" + s.Bucket
	if err := s.start("radosgw", "-f", "--conf", cluster.Conf, "--keyring", cluster.Keyring, "--name", "client.admin",
		"--rgw-frontends", "beast endpoint="+address, "--log-file", s.path("rgw.log")); err != nil {
		return nil, err
	}
	s.Core, err = minio.NewCore(address, &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: Region, MaxRetries: 1})
	if err != nil {
		return nil, err
	}
	for {
		err := s.Core.MakeBucket(ctx, s.Bucket, minio.MakeBucketOptions{})
		if err == nil {
			return s, nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("radosgw does not answer: %w: %s", err, s.words())
		}
	}
}

// Close ends gateway and cluster.
func (s *Server) Close() error { return s.ends.Run() }

func (s *Server) start(name string, args ...string) error {
	said, err := os.Create(s.path("rgw.err"))
	if err != nil {
		return err
	}
	defer said.Close()
	cmd := exec.Command(name, args...)
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the daemon dies with the thread that started it
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.ends.Push(func() error {
		_ = cmd.Process.Kill()
		<-ended
		return nil
	})
	return nil
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// words are the last that the gateway wrote.
func (s *Server) words() string {
	said, _ := os.ReadFile(s.path("rgw.err"))
	log, _ := os.ReadFile(s.path("rgw.log"))
	return fmt.Sprintf("radosgw: %s\n%s", said, log[max(0, len(log)-4000):])
}
