package qemublock

import (
	"hayloft/cloud/fault"
)

// Format is a Node seen through a disk format; it can only be read. An image that refers to others (backing file,
// parent, external data, extents in other files) is not opened: fault.Invalid.
type Format struct {
	Name string // qcow2, vmdk, vdi, vhdx
	Node Node
}

type formatOptions struct {
	common
	File any `json:"file"`
}

type backedOptions struct {
	formatOptions
	Backing *struct{} `json:"backing"` // null: none, whatever the image says
}

func (n Format) check() error {
	switch n.Name {
	case "qcow2", "vmdk", "vdi", "vhdx":
	default:
		return fault.Errorf(fault.Invalid, "format %q is none of qcow2, vmdk, vdi, vhdx", n.Name)
	}
	if _, ok := n.Node.(Format); ok {
		return fault.Errorf(fault.Invalid, "format %s of a format", n.Name)
	}
	return n.Node.check()
}

func (n Format) options(s *supplies, c common) any {
	s.format = n.Name
	below := c
	below.NodeName = "below"
	o := formatOptions{common: c.of(n.Name), File: n.Node.options(s, below)}
	if n.Name == "qcow2" || n.Name == "vmdk" {
		return backedOptions{formatOptions: o}
	}
	return o
}

// graphNode is one of query-named-block-nodes.
type graphNode struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	Image  struct {
		Filename string `json:"filename"`
		Backing  string `json:"backing-filename"`
		Specific struct {
			Data struct {
				DataFile string `json:"data-file"`
				Corrupt  bool   `json:"corrupt"`
			} `json:"data"`
		} `json:"format-specific"`
		Encrypted bool `json:"encrypted"`
	} `json:"image"`
}

// whole refuses images that lean on others. Those that QEMU opened all the same are among its nodes.
func whole(format string, nodes []graphNode) error {
	if len(nodes) != 2 {
		return fault.Errorf(fault.Invalid, "%s refers to other files: an image must be whole in itself", format)
	}
	for _, n := range nodes {
		switch {
		case n.Name != nodeName:
		case n.Image.Backing != "":
			return fault.Errorf(fault.Invalid, "%s has the backing file %q: an image must be whole in itself", format, n.Image.Backing)
		case n.Image.Specific.Data.DataFile != "":
			return fault.Errorf(fault.Invalid, "%s has the external data file %q: an image must be whole in itself", format, n.Image.Specific.Data.DataFile)
		case n.Image.Encrypted:
			return fault.Errorf(fault.Unsupported, "%s is encrypted", format)
		case n.Image.Specific.Data.Corrupt:
			return fault.Errorf(fault.Corrupt, "%s is marked corrupt", format)
		}
	}
	return nil
}
