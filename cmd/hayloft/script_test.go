package main

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client/clienttest"
)

// The scripts run the program itself, with a server whose machine web (3) has an echoing sshd.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			s := clienttest.New(env.T().(testing.TB))
			s.Put(cloud.KindVM, aVM(3, "web", running))
			s.Put(cloud.KindHost, api.Host{Host: cloud.Host{ID: 0, Name: "node-1"}})
			s.Answer("GET /v1/version", func(*http.Request, []byte) (any, error) {
				return api.Version{Version: "9.9", Cluster: "c/1"}, nil
			})
			s.Answer("POST /v1/vms/3/action", func(*http.Request, []byte) (any, error) {
				return nil, fault.Errorf(fault.Busy, "vm 3: somebody else was quicker")
			})
			s.Tunnel(func(_ int, _ string, port int) error {
				if port != 22 && port != 2222 {
					return fault.Errorf(fault.Unavailable, "vm 3: port %d: connection refused", port)
				}
				return nil
			}, func(conn net.Conn, _ string) {
				word := make([]byte, 5)
				_, _ = conn.Read(word)
				fmt.Fprintf(conn, "machine heard %s", word)
			})
			env.Setenv("HAYLOFT_ENDPOINT", s.Endpoint())
			env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, "cache dir"))
			env.Setenv("PATH", filepath.Join(env.WorkDir, "bin")+":"+env.Getenv("PATH"))
			return nil
		},
	})
}
