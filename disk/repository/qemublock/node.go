package qemublock

import (
	"strings"

	"hayloft/cloud/fault"
)

// Node is what QEMU opens: RBD, ISCSI, NFS, Gluster, Served, or one of these seen through a Format.
type Node interface {
	// check refuses values that the driver would not understand or could misunderstand (fault.Invalid).
	check() error
	// options are those of blockdev-add. The child gets what they refer to from s.
	options(s *supplies, c common) any
}

// nodeName is that of the one node that is exported.
const nodeName = "disk"

// common is what all drivers of QEMU's BlockdevOptions have.
type common struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name,omitempty"`
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard,omitempty"`
	Cache    *cache `json:"cache,omitempty"`
}

// cache "direct" keeps nothing in the child: what it acknowledged, the storage has.
type cache struct {
	Direct bool `json:"direct"`
}

func (c common) of(driver string) common {
	c.Driver = driver
	return c
}

// inet is QEMU's address of a server.
type inet struct {
	Type string `json:"type,omitempty"`
	Host string `json:"host"`
	Port string `json:"port,omitempty"`
}

// plain refuses what no driver takes in a name.
func plain(what, value string, needed bool) error {
	switch {
	case value == "" && needed:
		return fault.Errorf(fault.Invalid, "%s is missing", what)
	case strings.ContainsAny(value, "\x00\r\n"):
		return fault.Errorf(fault.Invalid, "%s %q has a line break or a zero byte", what, value)
	case len(value) > 4096:
		return fault.Errorf(fault.Invalid, "%s has %d bytes", what, len(value))
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// RBD is an image of Ceph.
type RBD struct {
	Pool, Namespace, Image string
	Snapshot               string // "": the image itself
	Conf                   string // path of ceph.conf; the child gets a copy
	User                   string // without "client."; "": admin
	Key                    Secret // of the user in base64, as in keyrings; "": no authentication
}

type rbdOptions struct {
	common
	Pool      string   `json:"pool"`
	Namespace string   `json:"namespace,omitempty"`
	Image     string   `json:"image"`
	Snapshot  string   `json:"snapshot,omitempty"`
	Conf      string   `json:"conf"`
	User      string   `json:"user,omitempty"`
	KeySecret string   `json:"key-secret,omitempty"`
	Auth      []string `json:"auth-client-required,omitempty"`
}

func (n RBD) check() error {
	return first(plain("RBD pool", n.Pool, true), plain("RBD namespace", n.Namespace, false), plain("RBD image", n.Image, true),
		plain("RBD snapshot", n.Snapshot, false), plain("CEPH_CONF", n.Conf, true), plain("CEPH_USER", n.User, false))
}

func (n RBD) options(s *supplies, c common) any {
	o := rbdOptions{common: c.of("rbd"), Pool: n.Pool, Namespace: n.Namespace, Image: n.Image, Snapshot: n.Snapshot,
		Conf: s.copyOf(n.Conf, "ceph.conf"), User: n.User}
	if n.Key != "" {
		o.KeySecret, o.Auth = s.secret(n.Key, "base64"), []string{"cephx"}
	}
	return o
}

// ISCSI is a logical unit of an iSCSI target.
type ISCSI struct {
	Portal    string // address[:port]
	Target    string // IQN
	LUN       int
	Initiator string // IQN; "": QEMU's
	User      string // CHAP; "": none
	Password  Secret
}

type iscsiOptions struct {
	common
	Transport string `json:"transport"`
	Portal    string `json:"portal"`
	Target    string `json:"target"`
	LUN       int    `json:"lun"`
	Initiator string `json:"initiator-name,omitempty"`
	User      string `json:"user,omitempty"`
	Password  string `json:"password-secret,omitempty"`
	Timeout   int    `json:"timeout"`
}

func (n ISCSI) check() error {
	if n.LUN < 0 || n.LUN > 16383 {
		return fault.Errorf(fault.Invalid, "iSCSI logical unit %d", n.LUN)
	}
	if (n.User == "") != (n.Password == "") {
		return fault.Errorf(fault.Invalid, "CHAP needs both user and password")
	}
	return first(plain("iSCSI portal", n.Portal, true), plain("iSCSI target", n.Target, true), plain("iSCSI initiator", n.Initiator, false),
		plain("CHAP user", n.User, false))
}

func (n ISCSI) options(s *supplies, c common) any {
	o := iscsiOptions{common: c.of("iscsi"), Transport: "tcp", Portal: n.Portal, Target: n.Target, LUN: n.LUN, Initiator: n.Initiator, User: n.User}
	if n.Password != "" {
		o.Password = s.secret(n.Password, "raw")
	}
	return o
}

// NFS is a file of an NFS server, read by the child itself.
type NFS struct {
	Host     string
	Path     string // absolute: export and file
	UID, GID int    // who the server takes it for
}

type nfsOptions struct {
	common
	Server inet   `json:"server"`
	Path   string `json:"path"`
	User   int    `json:"user"`
	Group  int    `json:"group"`
}

func (n NFS) check() error {
	if !strings.HasPrefix(n.Path, "/") {
		return fault.Errorf(fault.Invalid, "NFS path %q is not absolute", n.Path)
	}
	return first(plain("NFS server", n.Host, true), plain("NFS path", n.Path, true))
}

func (n NFS) options(s *supplies, c common) any {
	s.lowPorts = true // servers take only those for honest
	return nfsOptions{common: c.of("nfs"), Server: inet{Type: "inet", Host: n.Host}, Path: n.Path, User: n.UID, Group: n.GID}
}

// Gluster is a file of a GlusterFS volume.
type Gluster struct {
	Host, Port   string // Port "": 24007
	Volume, Path string
}

type glusterOptions struct {
	common
	Volume string `json:"volume"`
	Path   string `json:"path"`
	Server []inet `json:"server"`
}

func (n Gluster) check() error {
	return first(plain("Gluster server", n.Host, true), plain("Gluster volume", n.Volume, true), plain("Gluster path", n.Path, true), plain("port", n.Port, false))
}

func (n Gluster) options(s *supplies, c common) any {
	port := n.Port
	if port == "" {
		port = "24007"
	}
	s.lowPorts = true
	return glusterOptions{common: c.of("gluster"), Volume: n.Volume, Path: n.Path, Server: []inet{{Type: "inet", Host: n.Host, Port: port}}}
}
