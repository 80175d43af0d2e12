package guest

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// TestTapInANamespace gives a guest a network with the services of a namespace, such as a storage cluster's.
func TestTapInANamespace(t *testing.T) {
	labtest.Root(t, "ip", "nsenter")
	name := fmt.Sprintf("guest-%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if _, err := (command.Exec{}).Run(t.Context(), command.Cmd{Name: "ip", Args: args}); err != nil {
			t.Fatal(err)
		}
	}
	ip("netns", "add", name)
	t.Cleanup(func() {
		if _, err := (command.Exec{}).Run(background(), command.Cmd{Name: "ip", Args: []string{"netns", "delete", name}}); err != nil {
			t.Error(err)
		}
	})
	ip("-n", name, "tuntap", "add", "tap0", "mode", "tap")
	ip("-n", name, "address", "add", "10.7.0.1/24", "dev", "tap0")
	ip("-n", name, "link", "set", "tap0", "up")
	namespace := "/run/netns/" + name
	listener, err := listenIn(namespace, "10.7.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := echo(listener)
	defer stop()
	g := ForTest(t, Config{Network: Network{Namespace: namespace, Tap: "tap0", Address: "10.7.0.2/24", Gateway: "10.7.0.1"}})
	talk(t, g, listener.Addr().String())
}

// listenIn listens in a network namespace, on a thread that ends after it.
func listenIn(namespace, address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		file, err := os.Open(namespace)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		listener, err := net.Listen("tcp", address)
		done <- result{listener, err}
	}()
	r := <-done
	return r.listener, r.err
}
