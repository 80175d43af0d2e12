// Package guest boots a Debian with all kernel modules under QEMU, for tests of what the machine's own kernel lacks:
// device mapper and LVM, bcache, NFS, iSCSI, RBD. It emulates, at about a fifteenth of the machine's speed.
//
// Two ways to use it:
//
// A test that needs a kernel is named TestGuest... and calls labtest.Guest(t) first. TestGuestPackages of this package
// finds all such tests of the module, compiles them, and runs each inside, as root, with four disks of 1 GiB
// (labtest.Disks) and loopback. All run one after the other in one boot; one that fails or leaves devices or mounts
// behind costs a fresh guest. To work on some, name them by regular expressions:
//
//	HAYLOFT_LAB=1 HAYLOFT_GUEST_PACKAGES='localstore/lvm$' HAYLOFT_GUEST_RUN='Thin' go test -v -run TestGuestPackages ./lab/guest
//
// HAYLOFT_GUEST_PACKAGES is matched with the import path, HAYLOFT_GUEST_RUN with the test's name.
//
// A test on the outside that must cut the power, or offer the guest a service, starts one of its own with ForTest. What
// it runs inside is a program of Config.Programs (BuildProgram), or a test that calls labtest.OwnGuest (BuildTests and
// Guest.Test). Program lab/guest/durable writes so that after Guest.CutAfter every loss is found.
//
// Starting a program costs the emulated processor 0.03 to 0.1 s, an lvcreate or a dmsetup with its udev events half a
// second: few operations, on small disks, keep tests short.
package guest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/lab/golden"
)

// Disk is a raw file that the guest has as a block device with a write cache.
type Disk struct {
	File string // made, sparse, when it is not there; empty: in the directory of the guest
	Size int64  // bytes of a new one, a multiple of 512
	// Volatile: a power cut loses what was not flushed, each sector or not, by chance. Such a disk is slower, and
	// remembers in memory what is not flushed.
	Volatile bool
}

// Config says what a guest has.
type Config struct {
	Dir    string // for the disks and other files of the guest; must exist and be the guest's own
	Disks  []Disk // /dev/vdb, /dev/vdc and so on
	Memory int    // MiB; 0: 768
	CPUs   int    // 0: 1
	// Programs are files of the outside that the guest has, read-only and executable, below /programs.
	Programs map[string]string
	Network  Network
	Limit    time.Duration     // for a boot; 0: 6 minutes
	Log      func(line string) // gets a line when something must be built; may be nil
}

// Network says what else than its own loopback the guest reaches.
type Network struct {
	// Outside: QEMU's own network. The guest is 10.0.2.15, and 10.0.2.2 is the loopback of the network namespace
	// that QEMU runs in; see Guest.Forward.
	Outside bool
	// Tap is the name of a tap device that the caller made in the namespace, on which the guest has Address
	// (10.7.0.2/24) and a default route by Gateway, if not empty.
	Tap, Address, Gateway string
	// Namespace is the path of a network namespace to run QEMU in; empty: the caller's.
	Namespace string
}

// Guest is a machine with disks. It is started, ended in one of two ways, and started again any number of times.
// All its methods may be called by several goroutines, but for those that start and end it.
type Guest struct {
	config   Config
	image    golden.KernelGuest
	programs string
	mutex    sync.Mutex
	boot     *boot // nil when it is off
}

// Start makes the disks that are not there, and boots. Whoever starts a guest ends it.
func Start(ctx context.Context, c Config) (*Guest, error) {
	if c.Log == nil {
		c.Log = func(string) {}
	}
	image, err := golden.BuildKernelGuest(ctx, golden.Options{Log: c.Log})
	if err != nil {
		return nil, err
	}
	g := &Guest{config: c, image: image, programs: filepath.Join(c.Dir, "programs.img")}
	if err := g.makeDisks(); err != nil {
		return nil, fmt.Errorf("kernel guest: %w", err)
	}
	if err := makePrograms(ctx, c.Dir, g.programs, c.Programs); err != nil {
		return nil, fmt.Errorf("kernel guest: programs: %w", err)
	}
	return g, g.Boot(ctx)
}

func (g *Guest) makeDisks() error {
	disks := make([]Disk, len(g.config.Disks))
	for i, d := range g.config.Disks {
		if d.File == "" {
			d.File = filepath.Join(g.config.Dir, fmt.Sprintf("disk%d.img", i))
		}
		file, err := os.OpenFile(d.File, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		info, err := file.Stat()
		if err == nil && info.Size() == 0 {
			err = file.Truncate(d.Size)
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		disks[i] = d
	}
	g.config.Disks = disks
	return nil
}

// DiskPaths are the names of the disks in the guest.
func (g *Guest) DiskPaths() []string {
	var names []string
	for i := range g.config.Disks {
		names = append(names, device(1+i))
	}
	return names
}

// device is the name of a virtio disk by its place on the command line.
func device(n int) string { return "/dev/vd" + string(rune('a'+n)) }

// Boot starts a guest that is off, with the disks as they are.
func (g *Guest) Boot(ctx context.Context) error {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.boot != nil {
		return fault.Errorf(fault.Busy, "kernel guest: runs already")
	}
	limit := g.config.Limit
	if limit == 0 {
		limit = 6 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b, err := g.launch(ctx)
	if err != nil {
		return fmt.Errorf("kernel guest: boot: %w", err)
	}
	g.boot = b
	return nil
}

// running returns the boot that is on.
func (g *Guest) running() (*boot, error) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.boot == nil {
		return nil, fault.Errorf(fault.Unavailable, "kernel guest: is off")
	}
	return g.boot, nil
}

// Stop writes everything to the disks and powers off. A guest that is off stays so.
func (g *Guest) Stop(ctx context.Context) error {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.boot == nil {
		return nil
	}
	err := g.boot.powerOff(ctx)
	g.boot = nil
	if err != nil {
		return fmt.Errorf("kernel guest: power off: %w", err)
	}
	return nil
}

// PowerCut ends the guest at this moment, as a machine that loses power: what was in its memory is gone. What it had
// given to its disks is there, also when it had not flushed it, but for those that are Volatile. A guest that is
// off stays so.
func (g *Guest) PowerCut() (Loss, error) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.boot == nil {
		return Loss{}, nil
	}
	loss, err := g.boot.kill(rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	g.boot = nil
	if err != nil {
		return loss, fmt.Errorf("kernel guest: power cut: %w", err)
	}
	return loss, nil
}

// Loss is what a power cut did to the volatile disks, in sectors of 512 bytes.
type Loss struct{ Unflushed, Lost int }

// Console is the tail of what the kernel and init said at this boot, or the last one.
func (g *Guest) Console() string {
	text, err := os.ReadFile(filepath.Join(g.config.Dir, consoleFile))
	if err != nil {
		return err.Error()
	}
	const tail = 8 << 10
	if len(text) > tail {
		text = text[len(text)-tail:]
	}
	return string(text)
}

// CPUSeconds is what QEMU has used at this boot.
func (g *Guest) CPUSeconds() float64 {
	b, err := g.running()
	if err != nil {
		return 0
	}
	return b.cpuSeconds()
}
