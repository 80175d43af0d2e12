package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/internal/leaktest"
	"hayloft/server/api"
	"hayloft/server/api/client"
	"hayloft/server/api/client/clienttest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func connect(t *testing.T, s *clienttest.Server) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Endpoint: s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func machine(id int, phase cloud.Phase) api.VM {
	return api.VM{VM: cloud.VM{ID: id, Name: fmt.Sprint("vm-", id), State: phase.State, LCM: phase.LCM},
		StateName: phase.String(), StateCode: phase.Short()}
}

func TestEndpoints(t *testing.T) {
	t.Setenv(client.EnvEndpoint, "")
	t.Setenv(client.EnvCredentials, "")
	for _, row := range []struct {
		endpoint, wants string
		class           fault.Class
	}{
		{"", client.DefaultEndpoint, 0},
		{"unix:///tmp/a.sock", "unix:///tmp/a.sock", 0},
		{"unix://relative/a.sock", "want unix:///path", fault.Invalid},
		{"http://server:1", "want unix:///path", fault.Invalid},
		{"https://server:1", "ca.crt", fault.Invalid},
		{"https://server:1/path", "want unix:///path", fault.Invalid},
		{"::", "want unix:///path", fault.Invalid},
	} {
		c, err := client.New(client.Config{Endpoint: row.endpoint})
		switch {
		case err == nil && row.class == 0 && c.Endpoint() == row.wants:
		case err != nil && row.class != 0 && fault.Is(err, row.class) && strings.Contains(err.Error(), row.wants):
		default:
			t.Errorf("%q: %v, want %q", row.endpoint, err, row.wants)
		}
	}
	t.Setenv(client.EnvEndpoint, "unix:///from/environment")
	if c, err := client.New(client.Config{}); err != nil || c.Endpoint() != "unix:///from/environment" {
		t.Errorf("environment: %v", err)
	}
}

func TestRequests(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	ctx := t.Context()
	created := func(*http.Request, []byte) (any, error) { return api.Created{ID: 7}, nil }
	nothing := func(*http.Request, []byte) (any, error) { return nil, nil }
	s.Answer("POST /v1/{kinds}", created)
	s.Answer("POST /v1/vms", func(*http.Request, []byte) (any, error) { return api.CreatedVMs{IDs: []int{4, 5}}, nil })
	s.Answer("POST /v1/{kinds}/{ref}/{what}", nothing)
	s.Answer("POST /v1/hosts/{ref}/token", func(*http.Request, []byte) (any, error) { return api.CreatedHost{ID: 1, Token: "t"}, nil })
	s.Answer("POST /v1/vms/{id}/disks/{disk}/saveas", created)
	s.Answer("PUT /v1/{kinds}/{ref}", nothing)
	s.Answer("DELETE /v1/{kinds}/{ref}", nothing)
	is7 := func(id int, err error) error {
		if err == nil && id != 7 {
			return fmt.Errorf("id is %d", id)
		}
		return err
	}
	for want, do := range map[string]func() error{
		`POST /v1/vms {"template":"web","count":2}`: func() error {
			ids, err := c.CreateVMs(ctx, api.CreateVMs{Template: "web", Count: 2})
			if err == nil && fmt.Sprint(ids) != "[4 5]" {
				return fmt.Errorf("ids are %v", ids)
			}
			return err
		},
		`POST /v1/vms/3/action {"action":"stop"}`:           func() error { return c.Act(ctx, 3, "stop") },
		`POST /v1/vms/3/deploy {"host":"h","enforce":true}`: func() error { return c.Deploy(ctx, 3, "h", true) },
		`POST /v1/vms/3/recover {"operation":"retry"}`:      func() error { return c.Recover(ctx, 3, "retry") },
		`POST /v1/vms/3/resize {"vcpu":2}`:                  func() error { return c.Resize(ctx, 3, api.Resize{VCPU: 2}) },
		`POST /v1/vms/3/disks/1/saveas {"name":"x"}`:        func() error { return is7(c.SaveAs(ctx, 3, 1, "x")) },
		`POST /v1/images {"template":"T","datastore":"d"}`:  func() error { return is7(c.CreateImage(ctx, "T", "d")) },
		`POST /v1/datastores {"template":"T"}`:              func() error { return is7(c.CreateDatastore(ctx, "T", "")) },
		`POST /v1/networks {"template":"T","cluster":"c"}`:  func() error { return is7(c.CreateNetwork(ctx, "T", "c")) },
		`POST /v1/templates {"template":"T"}`:               func() error { return is7(c.CreateTemplate(ctx, "T")) },
		`POST /v1/clusters {"template":"NAME=c"}`:           func() error { return is7(c.CreateCluster(ctx, "NAME=c")) },
		`POST /v1/hosts {"name":"h"}`: func() error {
			host, err := c.CreateHost(ctx, "h", "")
			return is7(host.ID, err)
		},
		`POST /v1/hosts/h/token`: func() error {
			host, err := c.HostToken(ctx, "h")
			if err == nil && host.Token != "t" {
				return errors.New("token is " + host.Token)
			}
			return err
		},
		`POST /v1/hosts/h/status {"status":"offline"}`:            func() error { return c.SetHostStatus(ctx, "h", "offline") },
		`POST /v1/images/a%20b%3F/persistent {"persistent":true}`: func() error { return c.SetPersistent(ctx, "a b?", true) },
		`PUT /v1/templates/t {"template":"T","merge":true}`: func() error {
			return c.Update(ctx, cloud.KindTemplate, "t", api.Update{Template: "T", Merge: true})
		},
		`DELETE /v1/networks/n`: func() error { return c.Delete(ctx, cloud.KindNetwork, "n") },
	} {
		before := len(s.Requests())
		if err := do(); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if got := s.Requests()[before:]; len(got) != 1 || got[0] != want {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
}

func TestObjects(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	ctx := t.Context()
	s.Answer("GET /v1/version", func(*http.Request, []byte) (any, error) { return api.Version{Version: "v9"}, nil })
	s.Put(cloud.KindVM, machine(3, cloud.Active(cloud.LCMRunning)))
	s.Put(cloud.KindVM, machine(2, cloud.At(cloud.StateDone)))
	s.Put(cloud.KindHost, api.Host{Host: cloud.Host{ID: 0, Name: "h"}, Connected: true})
	s.Put(cloud.KindImage, api.Image{Image: cloud.Image{ID: 1, Name: "tiny"}, Done: 5})
	s.Put(cloud.KindDatastore, api.Datastore{Datastore: cloud.Datastore{ID: 1, Name: "default"}, FreeMB: 9})
	s.Put(cloud.KindTemplate, api.Template{VMTemplate: cloud.VMTemplate{ID: 1, Name: "t"}, Text: "CPU=1"})
	s.Put(cloud.KindNetwork, api.Network{Network: cloud.Network{ID: 1, Name: "n"}, Size: 4})
	s.Put(cloud.KindCluster, api.Cluster{Cluster: cloud.Cluster{ID: 0, Name: "c"}, Hosts: []int{0}})
	check := func(what string, ok bool, err error) {
		t.Helper()
		if err != nil || !ok {
			t.Errorf("%s: %v %v", what, ok, err)
		}
	}
	version, err := c.Version(ctx)
	check("version", version.Version == "v9", err)
	vms, err := c.VMs(ctx, false)
	check("vms", len(vms) == 1 && vms[0].ID == 3 && vms[0].StateName == "RUNNING", err)
	vms, err = c.VMs(ctx, true)
	check("all vms", len(vms) == 2, err)
	vm, err := c.VM(ctx, 3)
	check("vm", vm.Name == "vm-3", err)
	hosts, err := c.Hosts(ctx)
	check("hosts", len(hosts) == 1 && hosts[0].Connected, err)
	host, err := c.Host(ctx, "h")
	check("host", host.Name == "h", err)
	images, err := c.Images(ctx)
	check("images", len(images) == 1 && images[0].Done == 5, err)
	image, err := c.Image(ctx, "tiny")
	check("image", image.ID == 1, err)
	datastores, err := c.Datastores(ctx)
	check("datastores", len(datastores) == 1, err)
	datastore, err := c.Datastore(ctx, "1")
	check("datastore", datastore.FreeMB == 9, err)
	templates, err := c.Templates(ctx)
	check("templates", len(templates) == 1, err)
	template, err := c.Template(ctx, "t")
	check("template", template.Text == "CPU=1", err)
	networks, err := c.Networks(ctx)
	check("networks", len(networks) == 1, err)
	network, err := c.Network(ctx, "n")
	check("network", network.Size == 4, err)
	clusters, err := c.Clusters(ctx)
	check("clusters", len(clusters) == 1, err)
	cluster, err := c.Cluster(ctx, "c")
	check("cluster", len(cluster.Hosts) == 1, err)
}

func TestErrors(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	ctx := t.Context()
	s.Answer("POST /v1/vms/{id}/action", func(*http.Request, []byte) (any, error) {
		return nil, fault.Errorf(fault.WrongState, "vm 3: cannot suspend in PENDING 100%%")
	})
	s.Answer("GET /v1/version", func(r *http.Request, _ []byte) (any, error) { return "no object", nil })
	if err := c.Act(ctx, 3, "suspend"); !fault.Is(err, fault.WrongState) || err.Error() != "vm 3: cannot suspend in PENDING 100%" {
		t.Errorf("an error of the server: %v, %v", fault.ClassOf(err), err)
	}
	if _, err := c.Host(ctx, "nobody"); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown host: %v", err)
	}
	for ref, class := range map[string]fault.Class{"": fault.Invalid, ".": fault.NotFound, "..": fault.NotFound, "a/../b": fault.NotFound} {
		if _, err := c.Image(ctx, ref); !fault.Is(err, class) {
			t.Errorf("image %q: %v", ref, err)
		}
	}
	if err := c.Recover(ctx, 3, "retry"); err == nil || !strings.Contains(err.Error(), "404") && !strings.Contains(err.Error(), "405") {
		t.Errorf("a route that is not served: %v", err)
	}
	if _, err := c.Version(ctx); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "GET /v1/version") {
		t.Errorf("an answer of a wrong form: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.VMs(canceled, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled request: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	directory := t.TempDir()
	stale := filepath.Join(directory, "stale")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	for path, hint := range map[string]string{
		filepath.Join(directory, "none"): `is "hayloft up" running? There is no socket at ` + filepath.Join(directory, "none"),
		stale:                            `is "hayloft up" running? Nothing listens on ` + stale,
	} {
		c, err := client.New(client.Config{Endpoint: "unix://" + path})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.VMs(t.Context(), false)
		if !fault.Is(err, fault.Unavailable) || !strings.HasSuffix(err.Error(), hint) {
			t.Errorf("%s: %v: %v", path, fault.ClassOf(err), err)
		}
		if _, err = c.Tunnel(t.Context(), 1, client.TunnelConsole, 0); !fault.Is(err, fault.Unavailable) || !strings.HasSuffix(err.Error(), hint) {
			t.Errorf("tunnel to %s: %v", path, err)
		}
		if _, err = c.WaitVMs(t.Context(), []int{1}, nil, nil); !fault.Is(err, fault.Unavailable) {
			t.Errorf("wait at %s: %v", path, err)
		}
	}
}

func TestTunnel(t *testing.T) {
	s := clienttest.New(t)
	c := connect(t, s)
	s.Tunnel(func(id int, kind string, port int) error {
		if id != 3 || kind != client.TunnelTCP || port != 22 {
			return fault.Errorf(fault.WrongState, "vm %d is not running", id)
		}
		return nil
	}, func(conn net.Conn, _ string) {
		text, _ := io.ReadAll(conn) // until CloseWrite
		fmt.Fprintf(conn, "heard %s", text)
	})
	if _, err := c.Tunnel(t.Context(), 4, client.TunnelVNC, 0); !fault.Is(err, fault.WrongState) || err.Error() != "vm 4 is not running" {
		t.Errorf("a refused tunnel: %v", err)
	}
	conn, err := c.Tunnel(t.Context(), 3, client.TunnelTCP, 22)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || string(answer) != "heard hello" {
		t.Errorf("%q, %v", answer, err)
	}
}

// A server that accepts and says nothing must not hold a tunnel's set-up beyond its context.
func TestTunnelGivesUp(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := client.New(client.Config{Endpoint: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = conn.Read(make([]byte, 1))
			cancel()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	if _, err := c.Tunnel(ctx, 1, client.TunnelConsole, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestCredentialsFiles(t *testing.T) {
	directory := t.TempDir()
	open := func() error {
		_, err := client.New(client.Config{Endpoint: "https://server:2634", Credentials: directory})
		return err
	}
	if err := open(); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("no files: %v", err)
	}
	if err := os.WriteFile(filepath.Join(directory, "ca.crt"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no certificate in PEM") {
		t.Errorf("nonsense: %v", err)
	}
}
