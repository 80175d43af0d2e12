package cloud

import (
	"fmt"
	"slices"
)

// Kinds of resources, as they appear in store keys, the API and messages.
const (
	KindHost      = "host"
	KindCluster   = "cluster"
	KindDatastore = "datastore"
	KindImage     = "image"
	KindTemplate  = "template"
	KindVM        = "vm"
	KindNetwork   = "network"
	KindPrefetch  = "prefetch"
)

// Host is a machine that runs an agent.
type Host struct {
	ID         int               `json:"id"`
	Name       string            `json:"name"`
	State      HostState         `json:"state"`
	ClusterID  int               `json:"cluster_id"`
	CPU        float64           `json:"cpu"`       // cores
	MemoryMB   int               `json:"memory_mb"` // physical
	DiskMB     int               `json:"disk_mb"`   // of the local store, LS_MAX applied
	Storage    HostStorage       `json:"storage,omitzero"`
	Hypervisor []HostHypervisor  `json:"hypervisors,omitempty"`
	Version    string            `json:"version,omitempty"` // of the agent
	Error      string            `json:"error,omitempty"`
	Session    string            `json:"session,omitempty"`    // of its agent with a server, "" when it has none
	Bases      []string          `json:"bases,omitempty"`      // digests of the images it holds complete
	Partial    []PartialBase     `json:"partial,omitempty"`    // images it holds in part
	Orphans    []int             `json:"orphans,omitempty"`    // machines found there that nobody ordered
	Attributes map[string]string `json:"attributes,omitempty"` // the administrator's, RESERVED_CPU and RESERVED_MEM among them
}

// HostStorage is how a host was told to keep disks and caches: OpenNebula backlog #2827's LS_MAD, LS_PATH, LS_MAX and LC_MAD.
type HostStorage struct {
	LSMad   string   `json:"ls_mad,omitempty"` // dummy, file, lvm; "" is file
	LSPath  string   `json:"ls_path,omitempty"`
	LSMaxMB int      `json:"ls_max_mb,omitempty"`
	LCMad   string   `json:"lc_mad,omitempty"`   // "" or hayloft: the engine; dm-cache, bcache, flashcache; dummy
	LCModes []string `json:"lc_modes,omitempty"` // CACHE_MODEs that it has for persistent images; empty: all
}

// CanCache says why a host cannot serve a disk as it is to be cached, "" when it can.
func (s *HostStorage) CanCache(d *Disk) string {
	switch {
	case s.LSMad == "dummy" && d.LocalBytes()+d.BaseBytes() > 0:
		return fmt.Sprintf("has no local store (LS_MAD dummy), and disk %d needs one", d.ID)
	case d.cachesSource() && len(s.LCModes) > 0 && !slices.Contains(s.LCModes, d.Mode):
		return fmt.Sprintf("has LC_MAD %s, which cannot do CACHE_MODE %s of disk %d", s.LCMad, d.Mode, d.ID)
	}
	return ""
}

// LocalBytes is how much of this host's local store a disk may come to need for itself.
func (s *HostStorage) LocalBytes(d *Disk) int64 {
	if d.cachesSource() && s.LCMad != "" && s.LCMad != "hayloft" {
		return KernelCacheBytes(d.CacheSize, d.Size)
	}
	return d.LocalBytes()
}

// PartialBase is an image of which a host holds some chunks. Bytes of data, zeros not counted.
type PartialBase struct {
	Digest  string `json:"digest"`
	Present int64  `json:"present"`
	Total   int64  `json:"total"`
}

// HostHypervisor is what a host can run.
type HostHypervisor struct {
	Name        string            `json:"name"`
	Version     string            `json:"version,omitempty"`
	Accelerator string            `json:"accelerator,omitempty"`
	Chipsets    []string          `json:"chipsets,omitempty"`
	Notes       []string          `json:"notes,omitempty"`
	Error       string            `json:"error,omitempty"` // why it cannot be used; empty when it can
	Attributes  map[string]string `json:"attributes,omitempty"`
}

// Runs reports whether the host can run machines of the named hypervisor, and if not, why.
func (h *Host) Runs(hypervisor string) (bool, string) {
	for _, hv := range h.Hypervisor {
		if hv.Name == hypervisor {
			return hv.Error == "", hv.Error
		}
	}
	return false, "has no " + hypervisor
}

// Cluster groups hosts, datastores and networks.
type Cluster struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

// DefaultCluster is the id of the cluster that always exists.
const DefaultCluster = 0
