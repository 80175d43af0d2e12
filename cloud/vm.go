package cloud

import (
	"slices"

	"hayloft/cloud/template"
)

// VM is a machine, virtual or container.
type VM struct {
	ID           int               `json:"id"`
	Name         string            `json:"name"`
	UID          int               `json:"uid"`
	GID          int               `json:"gid"`
	State        State             `json:"state"`
	LCM          LCMState          `json:"lcm_state"`
	PrevState    State             `json:"prev_state"`
	PrevLCM      LCMState          `json:"prev_lcm_state"`
	TemplateID   int               `json:"template_id"` // -1: made without one
	Hypervisor   string            `json:"hypervisor"`
	CPU          float64           `json:"cpu"`
	VCPU         int               `json:"vcpu"`
	MemoryMB     int               `json:"memory_mb"`
	Disks        []Disk            `json:"disks"`
	NICs         []NIC             `json:"nics"`
	OS           OS                `json:"os"`
	Graphics     *Graphics         `json:"graphics,omitempty"`
	Context      map[string]string `json:"context,omitempty"`       // variables of context.sh, complete
	ContextFiles []FileImage       `json:"context_files,omitempty"` // FILES_DS
	ContextDev   string            `json:"context_target,omitempty"`
	Raw          string            `json:"raw,omitempty"`
	Simulated    map[string]string `json:"simulated,omitempty"`
	Requirements string            `json:"sched_requirements,omitempty"`
	Rank         string            `json:"sched_rank,omitempty"`
	System       int               `json:"system_datastore,omitempty"` // where it is kept while it is stopped or undeployed
	Template     template.Template `json:"template"`                   // what OpenNebula keeps in TEMPLATE, as given
	UserTemplate template.Template `json:"user_template"`              // the rest
	Hold         bool              `json:"hold,omitempty"`             // was created to be held
	Error        string            `json:"error,omitempty"`
	Warning      string            `json:"warning,omitempty"`       // while it is off: what its repositories have not got yet
	SchedMessage string            `json:"sched_message,omitempty"` // why it is not placed, host by host
	Shutdown     int               `json:"shutdown_seconds,omitempty"`

	HostID        int       `json:"host_id"`                  // -1: on none
	Stashed       bool      `json:"stashed,omitempty"`        // disks lie, wholly or in part, in the system datastore
	StashedMemory bool      `json:"stashed_memory,omitempty"` // and saved memory with them
	History       []History `json:"history,omitempty"`
	Orders        Orders    `json:"orders"`
	Timing        Timing    `json:"timing"`
	STime         int64     `json:"stime"`
	ETime         int64     `json:"etime"`
}

// Phase returns state and LCM state as one.
func (vm *VM) Phase() Phase { return Phase{vm.State, vm.LCM} }

// ImageIDs lists the images that the machine uses, disks first, each once.
func (vm *VM) ImageIDs() []int {
	var ids []int
	add := func(id int) {
		if id >= 0 && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, d := range vm.Disks {
		if !d.Released {
			add(d.ImageID)
		}
	}
	for _, f := range []*FileImage{vm.OS.Kernel, vm.OS.Initrd} {
		if f != nil {
			add(f.ImageID)
		}
	}
	for _, f := range vm.ContextFiles {
		add(f.ImageID)
	}
	return ids
}

// Resolve writes what the image is now into every place of the machine that uses it.
func (vm *VM) Resolve(i *Image) {
	vm.Disks = slices.Clone(vm.Disks)
	for n := range vm.Disks {
		d := &vm.Disks[n]
		if d.ImageID == i.ID {
			d.Source, d.Format, d.Digest, d.ImageSize = i.Source, i.Format, i.Digest, i.ObjectSize
			d.Size = max(d.Size, i.Size)
		}
	}
	file := func(f *FileImage) {
		if f != nil && f.ImageID == i.ID {
			f.Source, f.Digest, f.Size = i.Source, i.Digest, i.ObjectSize
		}
	}
	file(vm.OS.Kernel)
	file(vm.OS.Initrd)
	vm.ContextFiles = slices.Clone(vm.ContextFiles)
	for n := range vm.ContextFiles {
		file(&vm.ContextFiles[n])
	}
}

// Orders is what the machine's host has been told to do: the part of an assignment that changes.
type Orders struct {
	Epoch      uint64     `json:"epoch"`
	Goal       string     `json:"goal,omitempty"` // running, off, suspended, stashed, gone; "": nothing wanted of any host
	Hard       bool       `json:"hard,omitempty"`
	WithMemory bool       `json:"with_memory,omitempty"`
	Restore    bool       `json:"restore,omitempty"`
	Unstash    bool       `json:"unstash,omitempty"`
	Reboot     uint64     `json:"reboot,omitempty"`
	RebootHard bool       `json:"reboot_hard,omitempty"`
	Saves      []SaveDisk `json:"saves,omitempty"`
}

// SaveDisk asks for a disk to be saved as an image.
type SaveDisk struct {
	Operation uint64 `json:"operation"`
	Disk      int    `json:"disk"`
	ImageID   int    `json:"image_id"`
	Size      int64  `json:"size,omitempty"` // of the disk as the machine sees it
	From      int    `json:"from,omitempty"` // image that the disk is a clone of
	// BeforeGone has it done when the machine is terminated, before its disks go, which stay when it fails.
	BeforeGone bool `json:"before_gone,omitempty"`
}

// Timing is when a machine last reached the stages of a deployment. The host's moments are by its clock.
type Timing struct {
	Submitted   int64 `json:"submitted"`
	Scheduled   int64 `json:"scheduled,omitempty"`
	PrologStart int64 `json:"prolog_start,omitempty"`
	PrologEnd   int64 `json:"prolog_end,omitempty"`
	BootStart   int64 `json:"boot_start,omitempty"`
	BootEnd     int64 `json:"boot_end,omitempty"`
	Running     int64 `json:"running,omitempty"`     // recorded by the server
	ReadBytes   int64 `json:"read_bytes,omitempty"`  // from repositories, for this machine
	GivenBytes  int64 `json:"given_bytes,omitempty"` // what its disks offer
}

// Disk is one disk of a machine. Image disks keep what they were resolved to when the machine was
// created: a name is resolved once.
type Disk struct {
	ID          int    `json:"id"`
	ImageID     int    `json:"image_id"` // -1: volatile
	Image       string `json:"image,omitempty"`
	DatastoreID int    `json:"datastore_id"`
	Source      string `json:"source,omitempty"`
	Format      string `json:"format,omitempty"`
	Digest      string `json:"digest,omitempty"`
	ImageSize   int64  `json:"image_size,omitempty"`
	Persistent  bool   `json:"persistent,omitempty"`
	CDROM       bool   `json:"cdrom,omitempty"`
	ReadOnly    bool   `json:"read_only,omitempty"`
	Size        int64  `json:"size"` // what the machine sees
	Target      string `json:"target"`
	Cache       string `json:"cache,omitempty"`
	Discard     bool   `json:"discard,omitempty"`
	Volatile    string `json:"volatile,omitempty"` // fs, swap
	FS          string `json:"fs,omitempty"`
	Mode        string `json:"cache_mode,omitempty"`
	CacheSize   int64  `json:"cache_size,omitempty"` // bytes; 0: as the image
	Preload     int64  `json:"preload,omitempty"`    // bytes; PreloadAuto: by the boot profile
	SaveAs      string `json:"save_as,omitempty"`    // name of the image it is saved as when the machine is terminated
	Released    bool   `json:"released,omitempty"`   // the persistent image was taken from the machine: see image release
}

// LocalBytes is how much of a host's local store the disk may come to need for itself, with Hayloft's own caches.
func (d *Disk) LocalBytes() int64 {
	switch {
	case d.Persistent && (d.Mode == "" || d.Mode == CacheNone):
		return 0
	case d.Persistent && d.CacheSize > 0:
		return min(d.CacheSize, d.Size)
	case !d.Persistent && (d.ReadOnly || d.CDROM):
		return 0
	}
	return d.Size
}

// cachesSource reports whether the disk is a persistent image behind a cache that need not hold all of it.
func (d *Disk) cachesSource() bool {
	return d.Persistent && d.Mode != "" && d.Mode != CacheNone && d.Mode != CacheOffline
}

// BaseBytes is how much the image that the disk is a clone of may come to take on a host, shared by all its clones.
func (d *Disk) BaseBytes() int64 {
	switch {
	case d.Digest == "" || d.Persistent || d.Mode == CacheNone:
		return 0
	case d.CacheSize > 0:
		return min(d.CacheSize, d.ImageSize)
	}
	return d.ImageSize
}

// NIC is one network card of a machine with its lease.
type NIC struct {
	ID        int    `json:"id"`
	NetworkID int    `json:"network_id"`
	Network   string `json:"network"`
	Range     int    `json:"range"`
	Index     int    `json:"index"`
	IP        string `json:"ip,omitempty"`
	IP6       string `json:"ip6,omitempty"`
	MAC       string `json:"mac"`
	Prefix    int    `json:"prefix,omitempty"` // of IP
	Gateway   string `json:"gateway,omitempty"`
	Model     string `json:"model,omitempty"`
	Filter    bool   `json:"filter"`
}

// OS is what the machine boots from.
type OS struct {
	Machine  string     `json:"machine,omitempty"` // chipset: pc, q35, microvm
	Kernel   *FileImage `json:"kernel,omitempty"`
	Initrd   *FileImage `json:"initrd,omitempty"`
	Command  string     `json:"kernel_cmd,omitempty"`
	Boot     []string   `json:"boot,omitempty"`
	Firmware string     `json:"firmware,omitempty"`
	UUID     string     `json:"uuid"`
}

// FileImage is an image of a file datastore as resolved when the machine was created.
type FileImage struct {
	ImageID     int    `json:"image_id"`
	Name        string `json:"name"`
	DatastoreID int    `json:"datastore_id"`
	Source      string `json:"source"`
	Digest      string `json:"digest"`
	Size        int64  `json:"size"`
}

// Graphics is a screen of a machine.
type Graphics struct {
	Type     string `json:"type"`
	Listen   string `json:"listen"`
	Port     int    `json:"port"`
	Password string `json:"password,omitempty"`
}

// History is one stay of a machine on a host. Moments are Unix seconds, as OpenNebula has them.
type History struct {
	Seq      int    `json:"seq"`
	HostID   int    `json:"host_id"`
	Hostname string `json:"hostname"`
	Action   string `json:"action,omitempty"` // that ended the record
	STime    int64  `json:"stime"`
	ETime    int64  `json:"etime"`
	RSTime   int64  `json:"rstime"` // running from
	RETime   int64  `json:"retime"` // to
}
