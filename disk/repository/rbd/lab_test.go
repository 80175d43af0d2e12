package rbd

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/internal/leaktest"
	"hayloft/lab/cephlab"
	"hayloft/lab/labtest"
)

// lab is the one cluster of this package's tests, started by the first that needs it.
type lab struct {
	once    sync.Once
	dir     string
	cluster *cephlab.Cluster
	keyring string
	err     error
	spaces  atomic.Int64
}

var shared lab

func TestMain(m *testing.M) {
	status := m.Run()
	if shared.cluster != nil {
		shared.cluster.Close()
		os.RemoveAll(shared.dir)
	}
	if err := leaktest.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// ceph gives the cluster; tests that break it say so by breaking, and mend it.
func ceph(t testing.TB) *cephlab.Cluster {
	t.Helper()
	labtest.Root(t, "ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd", "rados", "qemu-storage-daemon")
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "rbdlab"); shared.err != nil {
			return
		}
		if shared.cluster, shared.err = cephlab.Start(context.Background(), cephlab.Config{Dir: shared.dir}); shared.err != nil {
			return
		}
		shared.keyring, shared.err = shared.cluster.CreateUser(context.Background(), "hayloft")
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// empty gives a repository in a namespace of its own.
func empty(t testing.TB) *Repository {
	t.Helper()
	c := ceph(t)
	space := fmt.Sprintf("n%d", shared.spaces.Add(1))
	must(t, "rbd", "namespace", "create", "--pool", "rbd", "--namespace", space)
	r, err := New(disk.Repository{ID: 7, Path: "rbd/" + space, Options: map[string]string{"CEPH_CONF": c.Conf, "CEPH_USER": "hayloft", "CEPH_KEYRING": shared.keyring}})
	if err != nil {
		t.Fatal(err)
	}
	r.limit = patience
	return r
}

// must runs a tool as the cluster's administrator.
func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := shared.cluster.Run(context.Background(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSuite(t *testing.T) {
	ceph(t)
	repositorytest.Run(t, func(t *testing.T) repository.Repository { return empty(t) })
}
