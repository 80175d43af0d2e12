package nfslab

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Client is a host of its own as far as the server can tell: it has a network namespace, and so an identity.
type Client struct {
	Dir  string // where it has the export
	t    testing.TB
	name string
}

// NewClient mounts the export as the host of that number, from 1; options are of mount.nfs4.
func (s *Server) NewClient(number int, options string) *Client {
	t := s.t
	t.Helper()
	c := &Client{Dir: t.TempDir(), t: t, name: fmt.Sprintf("nfslab%d", number)}
	here, there := fmt.Sprintf("nfsl%da", number), fmt.Sprintf("nfsl%db", number)
	run(t, "ip", "netns", "add", c.name)
	t.Cleanup(func() {
		run(t, "ip", "netns", "delete", c.name)
		_ = unix.Unmount("/run/netns", 0) // ip made that; the last client of a test takes it away
	})
	run(t, "ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", c.name)
	run(t, "ip", "address", "add", fmt.Sprintf("10.77.%d.1/24", number), "dev", here)
	run(t, "ip", "link", "set", here, "up")
	inside := func(args ...string) { run(t, "nsenter", append([]string{"--net=/run/netns/" + c.name}, args...)...) }
	inside("ip", "address", "add", fmt.Sprintf("10.77.%d.2/24", number), "dev", there)
	inside("ip", "link", "set", there, "up")
	// A client tells the server its host's name, and is taken for a host that restarted when another one has it.
	inside("unshare", "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, c.name, "mount.nfs4", fmt.Sprintf("10.77.%d.1:%s", number, s.Dir), c.Dir, "-o", options)
	t.Cleanup(func() {
		if err := unix.Unmount(c.Dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", c.Dir, err)
		}
	})
	return c
}

// Vanish is a host that dies, as far as the server can tell: not a byte comes from it any more.
func (c *Client) Vanish() {
	c.t.Helper()
	run(c.t, "ip", "link", "set", "nfsl"+c.name[len("nfslab"):]+"a", "down")
}

// Return ends Vanish.
func (c *Client) Return() {
	c.t.Helper()
	run(c.t, "ip", "link", "set", "nfsl"+c.name[len("nfslab"):]+"a", "up")
}
