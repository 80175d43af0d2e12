// Package network makes the host side of virtual networks: bridges, taps, addresses of the host, and
// isolation by MAC and IP. Everything made is tagged, and nothing untagged is ever changed or removed.
package network

import (
	"context"
	"net/netip"
	"os"
)

// Network is one virtual network on this host.
type Network struct {
	ID      int
	Name    string
	Bridge  string       // name of the bridge
	Gateway netip.Prefix // address the host itself takes on the bridge (GATEWAY with the network's mask); zero for none
	NAT     bool         // masquerade what leaves the host from this network
	MTU     int          // 0: the kernel's default
	PhyDev  string       // uplink to enslave, "" for none
}

// Kind is how a machine's port is made.
type Kind string

// The kinds of ports.
const (
	Tap  Kind = "tap"  // the caller gets an open tap that lives as long as it is held open
	Veth Kind = "veth" // the hypervisor makes the port itself, under the given name, on the bridge
)

// Port is one machine's NIC on this host.
type Port struct {
	Name    string // one-VMID-NICID, at most 15 bytes
	Kind    Kind
	Machine int
	MAC     string
	IPs     []netip.Addr // addresses it may send from
	Filter  bool         // drop frames with other source MACs or IPs (anti-spoofing)
	UID     int          // owner of a tap
}

// Driver is the contract. All methods are idempotent and safe for concurrent use. A name that is taken by
// something not ours is an error of class fault.Busy naming it, except that an existing bridge which is not
// ours is used as it is and never removed.
type Driver interface {
	// Ensure makes the bridge with its address and rules.
	Ensure(ctx context.Context, n Network) error
	// Release removes the bridge and rules of a network unless ports are still on it (fault.Busy).
	Release(ctx context.Context, n Network) error
	// Plug makes the port ready on an ensured network. The file is an open tap (vnet_hdr, multi-queue off)
	// for Kind Tap, nil for Veth.
	Plug(ctx context.Context, n Network, p Port) (*os.File, error)
	// Unplug takes the port and its rules away, by name.
	Unplug(ctx context.Context, port string) error
	// Ports lists names of all ports that have rules or interfaces of ours.
	Ports(ctx context.Context) ([]string, error)
	// Cleanup removes everything of ours: all ports, bridges and rules. For taking a host down.
	Cleanup(ctx context.Context) error
}
