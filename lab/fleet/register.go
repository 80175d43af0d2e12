package fleet

import (
	"context"
	"fmt"
	"strings"

	"hayloft/cloud"
	"hayloft/lab/golden"
	"hayloft/server/api"
)

// Names of what Register makes.
const (
	VMTemplate        = "tiny-vm"
	ContainerTemplate = "tiny-ct"
	NetworkName       = "lab"
	bridgeName        = "hlbr0"
)

// Import is how far an image's registration is, in bytes.
type Import struct {
	Image       string
	Done, Total int64
	Ready       bool
}

// RegisterGolden registers the images of the set and returns when all are ready. report, which may be nil, is
// told how far each is.
func (f *Fleet) RegisterGolden(ctx context.Context, set golden.Set, report func(Import)) error {
	for _, image := range []struct{ name, path, kind, datastore string }{
		{"tiny", set.Disk, "OS", ""},
		{"tiny-kernel", set.Kernel, "KERNEL", ""},
		{"tiny-initrd", set.Initrd, "RAMDISK", ""},
		{"tiny-ct", set.Tar, "OS", ""},
	} {
		text := fmt.Sprintf("NAME=%q PATH=%q TYPE=%q", image.name, image.path, image.kind)
		id, err := f.Client.CreateImage(ctx, text, image.datastore)
		if err != nil {
			return fmt.Errorf("image %s: %w", image.name, err)
		}
		_, err = f.Client.WaitImage(ctx, id, func(i api.Image, gone bool) (bool, error) {
			ready := i.State == cloud.ImageStateReady
			progress := Import{image.name, i.Done, i.Total, ready}
			if ready {
				progress.Done, progress.Total = i.ObjectSize, i.ObjectSize
			}
			if report != nil {
				report(progress)
			}
			if gone || i.State == cloud.ImageStateError {
				return true, fmt.Errorf("image %s: %s", image.name, i.Error)
			}
			return ready, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// CreateNetwork makes the virtual network, of which the namespace itself is the gateway, for up to 200 machines.
func (f *Fleet) CreateNetwork(ctx context.Context) error {
	_, err := f.Client.CreateNetwork(ctx, `NAME="`+NetworkName+`" VN_MAD="bridge" BRIDGE="`+bridgeName+`"
AR=[TYPE="IP4", IP="10.66.0.10", SIZE="200"]
GATEWAY="10.66.0.1" NETWORK_MASK="255.255.255.0" DNS="10.66.0.1" HOST_GATEWAY="YES"`, "")
	return err
}

// Shape is what each machine of a template takes.
type Shape struct {
	CPU      float64
	MemoryMB int    // of a virtual machine; a container is given half of it
	Chipset  string // of a virtual machine
}

// DefaultShape lets n machines fit on cores processors, whatever they do there.
func DefaultShape(n, cores int) Shape {
	return Shape{CPU: min(0.04, 0.9*float64(cores)/float64(max(n, 1))), MemoryMB: 96, Chipset: "pc"}
}

// CreateTemplates makes the templates of a virtual machine and a container, into which the prober can log in.
func (f *Fleet) CreateTemplates(ctx context.Context, s Shape) error {
	command := golden.CmdlinePC
	if s.Chipset == "microvm" {
		command = golden.Cmdline // it finds its interrupts in ACPI's tables
	}
	common := fmt.Sprintf("CPU=\"%.4f\" VCPU=\"1\"\nNIC=[NETWORK=%q]\nCONTEXT=[NETWORK=\"YES\", SSH_PUBLIC_KEY=%q, SET_HOSTNAME=\"$NAME\"]\n",
		s.CPU, NetworkName, f.Prober.Key())
	templates := []string{
		fmt.Sprintf("NAME=%q HYPERVISOR=\"qemu\" MEMORY=\"%d\"\nDISK=[IMAGE=\"tiny\"]\n", VMTemplate, s.MemoryMB) +
			fmt.Sprintf("OS=[MACHINE=%q, KERNEL=\"tiny-kernel\", INITRD=\"tiny-initrd\", KERNEL_CMD=%q]\n", s.Chipset, strings.TrimSpace(command)) + common,
		fmt.Sprintf("NAME=%q HYPERVISOR=\"lxc\" MEMORY=\"%d\"\nDISK=[IMAGE=\"tiny-ct\"]\n", ContainerTemplate, max(16, s.MemoryMB/2)) + common,
	}
	for _, text := range templates {
		if _, err := f.Client.CreateTemplate(ctx, text); err != nil {
			return err
		}
	}
	return nil
}

// Deploy asks for n machines of a template.
func (f *Fleet) Deploy(ctx context.Context, template string, n int) ([]int, error) {
	if n == 0 {
		return nil, nil
	}
	return f.Client.CreateVMs(ctx, api.CreateVMs{Template: template, Count: n})
}
