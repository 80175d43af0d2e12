package system

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"hayloft/hypervisor/cgroup"
)

// sector is a disk of 1 MiB whose boot sector writes "up" to the serial port and then waits for ever.
func sector() []byte {
	code := []byte{0xba, 0xf8, 0x03, 0xb0, 'u', 0xee, 0xb0, 'p', 0xee, 0xb0, '\n', 0xee, 0xfb, 0xf4, 0xeb, 0xfd}
	disk := make([]byte, 1<<20)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}

// file writes a file below the site's directory that a test registers as an image.
func (p *product) file(name string, content []byte) string {
	p.Helper()
	path := filepath.Join(p.site.Dir, "files", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		p.Fatal(err)
	}
	return path
}

// sectorImage registers a disk with only a boot sector.
func (p *product) sectorImage() int {
	p.Helper()
	return p.image(fmt.Sprintf("NAME=sector TYPE=OS PATH=%q", p.file("sector.img", sector())))
}

// containerImage registers the golden container.
func (p *product) containerImage() int {
	p.Helper()
	set, err := images()
	if err != nil {
		p.Fatal(err)
	}
	return p.image(fmt.Sprintf("NAME=tiny-ct TYPE=OS PATH=%q", set.Tar))
}

// context is the attribute that lets the test log in.
func (p *product) context() string {
	return fmt.Sprintf("CONTEXT=[NETWORK=YES, SSH_PUBLIC_KEY=%q, SET_HOSTNAME=\"$NAME\"]\n", p.login.public)
}

// sectorText is the template of a machine that costs next to nothing.
func (p *product) sectorText() string {
	return "CPU=0.03 MEMORY=16\nDISK=[IMAGE=sector]\nNIC=[NETWORK=net]\nOS=[MACHINE=pc]\n" + p.context()
}

func (p *product) containerText() string {
	return "CPU=0.03 MEMORY=32\nDISK=[IMAGE=\"tiny-ct\"]\nNIC=[NETWORK=net]\n" + p.context()
}

// boots counts how often a machine has begun to run, by what it says on its console when it does.
func (p *product) boots(id int, container bool) int {
	words := "up\n"
	if container {
		words = " ready at"
	}
	return bytes.Count([]byte(p.consoleLog(id)), []byte(words))
}

// nothingOnHost checks that no machine has left anything on the host.
func (p *product) nothingOnHost() {
	p.Helper()
	p.eventually("the host is empty", func() error {
		if left := p.qemus(); len(left) > 0 {
			return fmt.Errorf("QEMU processes of machines: %v", left)
		}
		if left := p.monitors(); len(left) > 0 {
			return fmt.Errorf("processes of containers: %v", left)
		}
		if left := p.machineDirs(); len(left) > 0 {
			return fmt.Errorf("directories: %v", left)
		}
		for _, pattern := range []string{"qemu/qemu-[0-9]*", "lxc/[0-9]*"} {
			if left, _ := filepath.Glob(filepath.Join(p.agentDir(), pattern)); len(left) > 0 {
				return fmt.Errorf("records: %v", left)
			}
		}
		if left := p.taps(); len(left) > 0 {
			return fmt.Errorf("taps and veths: %v", left)
		}
		tree, err := cgroup.New(p.site.Name)
		if err != nil {
			return err
		}
		if left, err := tree.List(); err != nil || len(left) > 0 {
			return fmt.Errorf("control groups: %v, %v", left, err)
		}
		if n := p.leases(); n > 0 {
			return fmt.Errorf("%d addresses are given out", n)
		}
		return nil
	})
}

// taps are the links of machines in the product's namespace.
func (p *product) taps() []string {
	p.Helper()
	var names []string
	p.eventually("list of links", func() error { // which may change while it is read
		names = nil
		return p.site.Namespace.Inside(func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				if l.Type() == "tuntap" || l.Type() == "veth" {
					names = append(names, l.Attrs().Name)
				}
			}
			return err
		})
	})
	return names
}
