// Package hypervisor is the door to what runs machines on a host. Drivers: qemu, lxc, dummy; one
// conformance suite, hypervisortest, runs against all.
package hypervisor

import (
	"context"
	"io"
	"os"
	"time"

	"hayloft/disk/device"
)

// Machine is everything a driver needs to start one machine. It is complete: a driver keeps what it
// must remember in Dir and never asks back.
type Machine struct {
	ID        int // the VM's number; one domain per number and host
	Name      string
	UUID      string
	CPU       float64 // share of cores the machine is entitled to (1 = one core)
	VCPU      int
	MemoryMB  int
	Dir       string // the machine's own directory, made by the caller, mode 0711 root; drivers put runtime files (sockets, logs, pid) under Dir/<driver>
	UID, GID  int    // unprivileged ids to run as; the disks of the machine are readable by them. 0,0: the driver's choice
	Boot      Boot
	Disks     []Disk
	NICs      []NIC
	Graphics  *Graphics
	Context   string            // host directory with context.sh and files, for drivers that can show a directory (lxc: read-only at /context); "" for none
	Restore   string            // file with saved memory to continue from instead of booting; "" boots
	Raw       string            // RAW/DATA for this driver, verbatim; "" for none
	Simulated map[string]string // the dummy driver's knobs, from the template's DUMMY vector
}

// Boot says what the machine starts from. Paths are on the host.
type Boot struct {
	Chipset     string // pc, q35, microvm; "" is the driver's default
	Kernel      string // direct-kernel boot when set
	Initrd      string
	CommandLine string
	Order       []string // "disk0", "nic0" as in OS/BOOT; empty: first disk
	Firmware    string   // "" or "BIOS"; others may be unsupported
}

// Disk is a vm device with its place in the machine.
type Disk struct {
	ID      int
	Device  device.Device
	Target  string // vda, sda, hda: the prefix selects the bus (vd virtio, sd scsi or sata, hd ide)
	CDROM   bool
	Cache   string // QEMU cache mode from DISK/CACHE; "" is the driver's default
	Discard bool
}

// NIC is a plugged port.
type NIC struct {
	ID      int
	MAC     string
	Model   string   // "virtio" or an emulated card; "" is virtio
	Bridge  string   // bridge on the host
	Port    string   // name of the host side: the tap, or the veth end the driver makes (one-VMID-NICID)
	Tap     *os.File // open tap for drivers of virtual machines, nil for containers; the caller closes it after Start
	IP      string   // IPv4 address with prefix length, for drivers that configure the guest (lxc); "" for none
	Gateway string
	MTU     int
}

// Graphics asks for a screen.
type Graphics struct {
	Type     string // "vnc"
	Listen   string // address; "" is 127.0.0.1
	Port     int    // TCP port, >= 5900
	Password string
}

// Status is what a driver sees of one domain.
type Status string

// The statuses.
const (
	Running Status = "running"
	Paused  Status = "paused"
	Off     Status = "off"     // stopped by itself or by request, cleanly
	Crashed Status = "crashed" // the process died or was killed, or the guest panicked
)

// Domain is one machine as it is on the host. Drivers list also those that are no longer running, as
// long as they have not been removed, so that an agent that was away learns how a machine ended.
type Domain struct {
	ID      int
	Status  Status
	PID     int       // 0 when not running
	Started time.Time // of the process; zero when not running
	Reason  string    // for Off and Crashed: what is known of the cause, e.g. the tail of QEMU's stderr
}

// Capabilities is what Probe found.
type Capabilities struct {
	Version     string // e.g. "QEMU 7.2.22"
	Accelerator string // "kvm", "tcg", "" where it does not apply
	Chipsets    []string
	Notes       []string          // what an administrator should know, e.g. why kvm is not used
	Attributes  map[string]string // further probe results for the host's template
}

// Usage is what a running machine has used so far.
type Usage struct {
	CPUSeconds  float64 // since start
	MemoryBytes int64   // resident
}

// Driver is the contract. All methods are safe for concurrent use, also for the same machine: a driver
// serialises per machine, and Kill and Remove go through while a Start or Shutdown is under way, which
// then ends with an error. Every method is idempotent: doing what is already done is success. Domains
// outlive the driver and its process; a new Driver over the same state root adopts them. Errors:
// fault.NotFound for a domain that does not exist, fault.Unsupported for what the driver never can,
// fault.Invalid for a Machine it cannot run, naming the part; other failures carry the program's own words.
type Driver interface {
	// Name is the hypervisor's name in templates: "qemu", "lxc", "dummy".
	Name() string
	// Probe finds out what this host can do by trying it. Results may be cached by the driver.
	Probe(ctx context.Context) (Capabilities, error)
	// Start boots the machine, or continues it from m.Restore, and returns when it runs. A machine that
	// already runs is success. After an error nothing of the machine's process is left.
	Start(ctx context.Context, m Machine) error
	// Shutdown asks the guest to power off and returns when it has been asked; the end is seen in List.
	Shutdown(ctx context.Context, id int) error
	// Kill ends the machine at once, like a power cut, and returns when its process is gone.
	Kill(ctx context.Context, id int) error
	// Reboot restarts the guest: asked when !hard, reset when hard. The domain stays.
	Reboot(ctx context.Context, id int, hard bool) error
	// Save writes the machine's memory and state to the file path (created 0600), ends the domain and
	// returns when both are done; the file is synced. On error the machine goes on running and no file is left.
	Save(ctx context.Context, id int, path string) error
	// List returns every domain that has not been removed, ordered by ID.
	List(ctx context.Context) ([]Domain, error)
	// Remove forgets a domain and deletes its runtime files; a running one is killed first.
	Remove(ctx context.Context, id int) error
	// Events delivers the id of each domain whose status may have changed, until ctx ends. At least one
	// event follows every change; spurious ones are allowed. One reader.
	Events(ctx context.Context) <-chan int
}

// Consoler is a driver whose machines have a text console. Several readers may be attached at a time.
type Consoler interface {
	Console(ctx context.Context, id int) (io.ReadWriteCloser, error)
	// ConsoleLog returns the last max bytes the machine wrote to its console, also after it ended.
	ConsoleLog(ctx context.Context, id int, max int) ([]byte, error)
}

// Meter is a driver that can tell what a running machine used.
type Meter interface {
	Usage(ctx context.Context, id int) (Usage, error)
}

// Demand is the processor time a machine has had and the time it has waited for some, in seconds since its
// start, over all its threads. A machine that is busy gains one second a second for each busy thread,
// however many others compete.
type Demand struct{ Ran, Waited float64 }

// Demander is a driver whose machines' boots take processor time that is worth pacing, and that can tell
// how much of it they want.
type Demander interface {
	Demand(ctx context.Context, id int) (Demand, error)
}

// Freezer is a driver that can stop a running machine's disks for the time of fn, so that a consistent
// copy can be taken (disk-saveas of a running machine).
type Freezer interface {
	Freeze(ctx context.Context, id int, fn func() error) error
}

// Snapshotter is a driver that can show a disk of a running machine as it is at one moment, while the machine goes on. Drivers that
// cannot may be Freezers.
type Snapshotter interface {
	// Snapshot calls fn with the disk as it was when Snapshot was called. What the machine overwrites meanwhile is kept in a file
	// in the machine's directory; when there is no room for that, the machine goes on and s.Check fails. Nothing is left of it when Snapshot
	// returns, or once a driver was opened again. fault.WrongState when the machine does not run, fault.NotFound for the disk,
	// fault.Unsupported when its QEMU is too old.
	Snapshot(ctx context.Context, id, disk int, fn func(s Snapshot) error) error
}

// Snapshot is where a disk of the past can be read.
type Snapshot struct {
	Socket string // of an NBD server on this host, for root
	Export string // with the metadata context qemu:allocation-depth
	Own    int    // the deepest layer there that is the machine's own; what lies deeper belongs to the image below
	// Check says whether what was read through Export so far is right: to be asked after reading.
	Check func(ctx context.Context) error
}
