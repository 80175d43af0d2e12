// Package device describes the vm device: what the way of a disk ends in and a hypervisor is handed.
package device

// Kind says how the hypervisor reaches the device.
type Kind string

// The kinds of vm devices.
const (
	File      Kind = "file"      // a file in Format at Path
	Block     Kind = "block"     // a block device at Path
	NBD       Kind = "nbd"       // an NBD export named Export on the unix socket Path
	Directory Kind = "directory" // a directory tree: Lower below, Upper and Work on top of it
)

// Format is the layout of the bytes in a File.
type Format string

// The formats a hypervisor may be handed.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// Device is one vm device. Paths are absolute on the host.
type Device struct {
	Kind     Kind
	Path     string
	Format   Format
	Export   string // NBD only
	ReadOnly bool
	Lower    string // Directory only: the shared read-only tree
	Upper    string // Directory only: this machine's changes
	Work     string // Directory only: overlayfs work directory on Upper's file system
	// Backing is what lies below a File in format QCOW2 now, when that is not what its header names: the same bytes,
	// reached another way. Read-only; never has a Backing itself.
	Backing *Device
}
