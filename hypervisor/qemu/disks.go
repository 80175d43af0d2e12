package qemu

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hayloft/disk/device"
	"hayloft/hypervisor"
)

// mmioSlots is how many virtio devices a microvm holds.
const mmioSlots = 24

// cache is a QEMU cache mode, taken apart as QEMU's manual does.
type cache struct{ direct, noFlush, writeThrough bool }

var cacheModes = map[string]cache{
	"": {}, "default": {}, "writeback": {},
	"none":         {direct: true},
	"writethrough": {writeThrough: true},
	"directsync":   {direct: true, writeThrough: true},
	"unsafe":       {noFlush: true},
}

func (l *line) disks() error {
	disks := slices.Clone(l.m.Disks)
	// The guest names devices in the order it meets them.
	slices.SortStableFunc(disks, func(a, b hypervisor.Disk) int { return cmp.Compare(a.Target, b.Target) })
	targets := map[string]bool{}
	for _, d := range disks {
		if targets[d.Target] {
			return invalid("disk %d: target %s is taken by another disk", d.ID, d.Target)
		}
		targets[d.Target] = true
		if err := l.disk(d); err != nil {
			return fmt.Errorf("disk %d: %w", d.ID, err)
		}
	}
	if l.mmio > mmioSlots {
		return invalid("chipset microvm: %d virtio devices, %d are possible", l.mmio, mmioSlots)
	}
	return nil
}

func (l *line) disk(d hypervisor.Disk) error {
	mode, ok := cacheModes[strings.ToLower(d.Cache)]
	if !ok {
		return invalid("cache mode %q: unknown", d.Cache)
	}
	readOnly := d.Device.ReadOnly || d.CDROM
	node := fmt.Sprintf("disk%d-node", d.ID)
	chain, err := blockNode(d, node, mode, readOnly, l.s.nbdReconnect)
	if err != nil {
		return err
	}
	if d.Device.Backing != nil {
		below, err := backingNode(d, l.s.nbdReconnect)
		if err != nil {
			return err
		}
		l.object("-blockdev", below)
		chain["backing"] = below["node-name"]
	}
	l.object("-blockdev", chain)

	p := properties{"id": fmt.Sprintf("disk%d", d.ID), "drive": node}
	if index := l.bootIndex(p["id"].(string)); index > 0 {
		p["bootindex"] = index
	}
	if mode.writeThrough && !readOnly {
		p["write-cache"] = "off"
	}
	kind := "hd"
	if d.CDROM {
		kind = "cd"
	}
	number := 0
	if len(d.Target) == 3 {
		number = int(d.Target[2]) - 'a'
	}
	if len(d.Target) != 3 || number < 0 || number > 25 {
		return invalid("target %q: not vda to vdz, sda to sdz or hda to hdf", d.Target)
	}
	switch d.Target[:2] {
	case "vd":
		l.device("virtio-blk", p)
	case "sd":
		if !l.names["scsi0"] {
			l.names["scsi0"] = true
			l.device("virtio-scsi", properties{"id": "scsi0"})
		}
		p["bus"], p["scsi-id"] = "scsi0.0", number
		l.device("scsi-"+kind, p)
	case "hd":
		return l.ideDisk(d, kind, number, readOnly, p)
	default:
		return invalid("target %q: not vda to vdz, sda to sdz or hda to hdf", d.Target)
	}
	return nil
}

func (l *line) ideDisk(d hypervisor.Disk, kind string, number int, readOnly bool, p properties) error {
	switch {
	case l.microvm():
		return invalid("target %s: chipset microvm has no IDE", d.Target)
	case readOnly && !d.CDROM:
		return invalid("target %s: an IDE disk cannot be read-only, only a CD-ROM", d.Target)
	case chipsetOf(l.s.Machine) == "q35": // six AHCI ports
		if number > 5 {
			return invalid("target %s: chipset q35 has hda to hdf", d.Target)
		}
		p["bus"] = fmt.Sprintf("ide.%d", number)
	default: // two channels of two
		if number > 3 {
			return invalid("target %s: chipset pc has hda to hdd", d.Target)
		}
		p["bus"], p["unit"] = fmt.Sprintf("ide.%d", number/2), number%2
	}
	l.device("ide-"+kind, p)
	return nil
}

// blockNode describes the way from the format down to the bytes (QEMU's BlockdevOptions).
func blockNode(d hypervisor.Disk, name string, mode cache, readOnly bool, reconnect time.Duration) (properties, error) {
	discard := "ignore"
	if d.Discard {
		discard = "unmap"
	}
	dev := d.Device
	bottom, err := fileNode(dev, reconnect)
	if err != nil {
		return nil, err
	}
	common := func(p properties) properties {
		p["read-only"], p["cache"], p["discard"] = readOnly, properties{"direct": mode.direct, "no-flush": mode.noFlush}, discard
		return p
	}
	format := dev.Format
	if format == "" {
		format = device.Raw
	}
	if format != device.Raw && format != device.QCOW2 {
		return nil, invalid("format %q: raw and qcow2 are possible", format)
	}
	return common(properties{"driver": string(format), "node-name": name, "file": common(bottom)}), nil
}

// backingNode describes what lies below an overlay for now, instead of what its header names. It is a node of its own,
// because what is given in line is taken as options for the file that the header names.
func backingNode(d hypervisor.Disk, reconnect time.Duration) (properties, error) {
	dev := *d.Device.Backing
	if d.Device.Format != device.QCOW2 || dev.Backing != nil || dev.Format != device.Raw && dev.Format != "" {
		return nil, invalid("backing device %s: only a raw one below a qcow2 file is possible", dev.Path)
	}
	bottom, err := fileNode(dev, reconnect)
	if err != nil {
		return nil, err
	}
	bottom["read-only"] = true
	return properties{"driver": string(device.Raw), "node-name": fmt.Sprintf("disk%d-backing", d.ID), "read-only": true, "file": bottom}, nil
}

// nbdOpenLimit is how long the opening of an NBD export waits for its server to come back.
const nbdOpenLimit = 30 * time.Second

// fileNode describes how the bytes of a device are reached.
func fileNode(dev device.Device, reconnect time.Duration) (properties, error) {
	if !filepath.IsAbs(dev.Path) || strings.ContainsRune(dev.Path, 0) {
		return nil, invalid("device path %q: not an absolute path", dev.Path)
	}
	switch dev.Kind {
	case device.File:
		return properties{"driver": "file", "filename": dev.Path}, nil
	case device.Block:
		return properties{"driver": "host_device", "filename": dev.Path}, nil
	case device.NBD:
		return properties{"driver": "nbd", "export": dev.Export, "server": properties{"type": "unix", "path": dev.Path},
			"reconnect-delay": int(reconnect.Seconds()), "open-timeout": int(nbdOpenLimit.Seconds())}, nil
	}
	return nil, invalid("device kind %q: a virtual machine cannot use it", dev.Kind)
}

// bootIndex is the place of a device in the boot order, from 1; 0 for none. A kernel given directly comes first.
func (l *line) bootIndex(id string) int {
	if l.microvm() {
		return 0
	}
	order := l.m.Boot.Order
	if len(order) == 0 {
		order = firstDisk(l.m.Disks)
	}
	return slices.Index(order, id) + 1
}

// firstDisk is the boot order of a machine that gives none: the disk with the lowest number, before any CD-ROM.
func firstDisk(disks []hypervisor.Disk) []string {
	if len(disks) == 0 {
		return nil
	}
	first := slices.MinFunc(disks, func(a, b hypervisor.Disk) int {
		if a.CDROM != b.CDROM {
			if a.CDROM {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return []string{fmt.Sprintf("disk%d", first.ID)}
}
