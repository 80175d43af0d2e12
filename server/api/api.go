// Package api is the shape of the JSON interface: what rest serves and the client asks for.
//
// Objects are named by id, or by name where a path says REF. Errors have an HTTP status by class and the
// body {"error": {"class": "not-found", "message": "..."}}.
//
//	GET    /v1/version                        Version
//	GET    /v1/KINDS                          List of objects: vms (?all=1: DONE ones too), hosts, images,
//	                                          datastores, templates, networks, clusters
//	GET    /v1/KINDS/REF                      one object
//	POST   /v1/KINDS                          Create -> Created (hosts: CreateHost -> CreatedHost; vms: CreateVMs -> CreatedVMs)
//	PUT    /v1/KINDS/REF                      Update (templates, hosts, images and datastores)
//	DELETE /v1/KINDS/REF                      delete (not vms: they have actions)
//	POST   /v1/vms/ID/action                  Action: hold, release, poweroff, poweroff-hard, resume, suspend, stop,
//	                                          undeploy, undeploy-hard, reboot, reboot-hard, terminate, terminate-hard
//	POST   /v1/vms/ID/deploy                  Deploy
//	POST   /v1/vms/ID/recover                 Recover: failure, success, retry, delete, recreate, delete-db
//	POST   /v1/vms/ID/resize                  Resize
//	POST   /v1/vms/ID/disks/N/saveas          SaveAs -> Created
//	POST   /v1/vms/ID/disks/N/cache           DiskCache: of a machine that is off, from its next start on
//	GET    /v1/vms/ID/tunnel?kind=K&port=P    Upgrade: hayloft-tunnel; then bytes both ways. K: console,
//	                                          console-log, vnc, tcp (with a port of the guest)
//	POST   /v1/hosts/REF/status               HostStatus: enable, disable, offline
//	POST   /v1/hosts/REF/token                -> CreatedHost with a new token to enroll with
//	POST   /v1/images/REF/persistent          Persistent
//	POST   /v1/images/REF/prefetch            Prefetch: bring it to hosts, or drop that wish; what became of it is
//	                                          in the image's prefetches
//	POST   /v1/images/REF/release             Release: take a persistent image from an owner that never comes back
//	POST   /v1/images/REF/clone               CloneImage -> Created
//	POST   /v1/images/REF/flatten             make a clone independent of its parent, in the background
//	GET    /v1/watch?kind=vm&kind=host        Events as lines of JSON: first every object there is, then Synced,
//	                                          then each change
package api

import (
	"encoding/json"

	"hayloft/cloud"
)

// TunnelProtocol is the value of the Upgrade header for tunnels.
const TunnelProtocol = "hayloft-tunnel"

// Version says what serves.
type Version struct {
	Version string `json:"version"`
	Cluster string `json:"cluster"` // id of the installation
}

// List is a list of objects.
type List[T any] struct {
	Items []T `json:"items"`
}

// VM is a machine with what is not stored about it.
type VM struct {
	cloud.VM
	StateName string  `json:"state_name"` // as OpenNebula's messages have it, RUNNING
	StateCode string  `json:"state_code"` // in four letters, runn
	HostName  string  `json:"host_name,omitempty"`
	Step      string  `json:"step,omitempty"` // of a preparation under way
	Done      int64   `json:"done,omitempty"` // bytes
	Total     int64   `json:"total,omitempty"`
	Rate      int64   `json:"rate,omitempty"` // of that, bytes a second lately; 0: not known
	UsedCPU   float64 `json:"used_cpu_seconds,omitempty"`
	UsedBytes int64   `json:"used_memory_bytes,omitempty"`
	Caches    []Cache `json:"caches,omitempty"` // of its disks, as last sampled
}

// Cache is what the cache of one disk is doing. Sizes in bytes.
type Cache struct {
	Disk      int    `json:"disk"`
	Mode      string `json:"mode"`
	Cached    int64  `json:"cached"`
	Total     int64  `json:"total"`
	Undrained int64  `json:"undrained"` // written on the host, not in the repository
	Degraded  bool   `json:"degraded,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Host is a host with what its machines take.
type Host struct {
	cloud.Host
	StateName    string  `json:"state_name"`
	Connected    bool    `json:"connected"`
	VMs          []int   `json:"vms"`
	UsedCPU      float64 `json:"used_cpu"`
	UsedMemoryMB int     `json:"used_memory_mb"`
	UsedDiskMB   int     `json:"used_disk_mb"`
	MaxCPU       float64 `json:"max_cpu"` // less what is reserved
	MaxMemoryMB  int     `json:"max_memory_mb"`
	// Held are the images it has, whole or in part; of one host only, not in lists.
	Held []Held `json:"held,omitempty"`
}

// Held is an image on a host, in bytes of data (zeros not counted). Several images may have one content.
type Held struct {
	Digest   string `json:"digest"`
	Images   []int  `json:"images"`
	Names    string `json:"names,omitempty"`
	Present  int64  `json:"present"`
	Total    int64  `json:"total"`
	Complete bool   `json:"complete"`
}

// Image is an image with who uses it and how far its import is.
type Image struct {
	cloud.Image
	StateName string `json:"state_name"` // USED derived
	TypeName  string `json:"type_name"`
	VMs       []int  `json:"vms"`
	Done      int64  `json:"done,omitempty"`
	Total     int64  `json:"total,omitempty"`
	// Prefetches are the hosts that it is wished onto, by id.
	Prefetches []Prefetched `json:"prefetches,omitempty"`
	// Owner is who has a persistent image in use, as its repository says; of one image only, not in lists.
	Owner *Owner `json:"owner,omitempty"`
}

// Prefetched is how far an image is on its way to a host.
type Prefetched struct {
	cloud.Prefetch
	HostName string `json:"host_name"`
}

// Owner is the mark beside a persistent image in use.
type Owner struct {
	Host       string `json:"host"`
	Machine    int    `json:"machine"`
	Generation uint64 `json:"generation"`
	Undrained  bool   `json:"undrained"`
	Error      string `json:"error,omitempty"` // why it is not known
}

// Datastore is a datastore with its images.
type Datastore struct {
	cloud.Datastore
	TypeName string `json:"type_name"`
	Images   []int  `json:"images"`
	TotalMB  int64  `json:"total_mb"` // 0: not known; in lists that of directories alone is
	FreeMB   int64  `json:"free_mb"`
	Error    string `json:"error,omitempty"` // why the server cannot reach its storage; of one datastore only, not in lists
}

// Template is a VM template.
type Template struct {
	cloud.VMTemplate
	Text string `json:"text"` // the template as text
}

// Network is a virtual network with its leases.
type Network struct {
	cloud.Network
	Leases []cloud.Lease `json:"leases"`
	Size   int           `json:"size"` // addresses in all ranges
}

// Cluster is a cluster with what is in it.
type Cluster struct {
	cloud.Cluster
	Hosts      []int `json:"hosts"`
	Datastores []int `json:"datastores"`
	Networks   []int `json:"networks"`
}

// Create makes an object from a template in OpenNebula's language (clusters: only NAME).
type Create struct {
	Template  string `json:"template"`
	Datastore string `json:"datastore,omitempty"` // REF, images only
	Cluster   string `json:"cluster,omitempty"`   // REF
}

// Created answers Create.
type Created struct {
	ID int `json:"id"`
}

// CreateHost makes a host's record.
type CreateHost struct {
	Name    string `json:"name"`
	Cluster string `json:"cluster,omitempty"`
}

// CreatedHost answers CreateHost; the agent enrolls with the token, once, within a day.
type CreatedHost struct {
	ID    int    `json:"id"`
	Token string `json:"token"`
}

// CreateVMs makes machines from a registered template, or from text, or from both (text is merged over).
type CreateVMs struct {
	Template string `json:"template,omitempty"` // REF
	Text     string `json:"text,omitempty"`
	Name     string `json:"name,omitempty"`  // "%i" in it becomes 0, 1, ...; "" is the template's name and the id
	Count    int    `json:"count,omitempty"` // default 1
	Hold     bool   `json:"hold,omitempty"`
}

// CreatedVMs answers CreateVMs.
type CreatedVMs struct {
	IDs []int `json:"ids"`
}

// Update replaces a template, or merges into it.
type Update struct {
	Template string `json:"template"`
	Merge    bool   `json:"merge,omitempty"`
}

// Action is one of OpenNebula's one.vm.action.
type Action struct {
	Action string `json:"action"`
}

// Deploy puts a waiting machine on a named host.
type Deploy struct {
	Host    string `json:"host"`              // REF
	Enforce bool   `json:"enforce,omitempty"` // only if it fits
}

// Recover is one of OpenNebula's one.vm.recover.
type Recover struct {
	Operation string `json:"operation"`
}

// Resize changes what a machine takes; zero keeps.
type Resize struct {
	CPU      float64 `json:"cpu,omitempty"`
	VCPU     int     `json:"vcpu,omitempty"`
	MemoryMB int     `json:"memory_mb,omitempty"`
}

// SaveAs saves a disk as a new image.
type SaveAs struct {
	Name     string `json:"name"`
	WhenDone bool   `json:"when_done,omitempty"` // when the machine is terminated; Created has no image then. Without Name: not any more
}

// DiskCache changes how a disk is cached; empty keeps.
type DiskCache struct {
	Mode    string `json:"mode,omitempty"`    // CACHE_MODE
	SizeMB  string `json:"size_mb,omitempty"` // CACHE_SIZE; 0: as the image
	Preload string `json:"preload,omitempty"` // PRELOAD_SIZE: MB, or AUTO
}

// Prefetch brings an image to hosts, or with Cancel drops that wish.
type Prefetch struct {
	Hosts  []string `json:"hosts,omitempty"` // REFs
	All    bool     `json:"all,omitempty"`   // instead: all that are connected; with Cancel: all
	Rate   int64    `json:"rate,omitempty"`  // bytes a second for each; 0: no bound
	Cancel bool     `json:"cancel,omitempty"`
}

// CloneImage makes an image with the content of another one.
type CloneImage struct {
	Name       string `json:"name"`
	Datastore  string `json:"datastore,omitempty"`  // REF; "": that of the image
	Persistent *bool  `json:"persistent,omitempty"` // absent: as the image
}

// Release takes a persistent image from its owner. AcceptStale gives up writes that the image has not yet.
type Release struct {
	AcceptStale bool `json:"accept_stale,omitempty"`
}

// HostStatus is enable, disable or offline.
type HostStatus struct {
	Status string `json:"status"`
}

// Persistent makes an image persistent, or not.
type Persistent struct {
	Persistent bool `json:"persistent"`
}

// Event is one line of a watch. Object is of the kind's type above.
type Event struct {
	Synced  bool            `json:"synced,omitempty"`
	Kind    string          `json:"kind,omitempty"`
	ID      int             `json:"id"`
	Deleted bool            `json:"deleted,omitempty"`
	Object  json.RawMessage `json:"object,omitempty"`
}

// Error is the body of an error.
type Error struct {
	Error struct {
		Class   string `json:"class"`
		Message string `json:"message"`
	} `json:"error"`
}
