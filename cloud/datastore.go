package cloud

import "hayloft/cloud/template"

// Ids of the datastores that always exist, as in OpenNebula.
const (
	SystemDatastore  = 0
	DefaultDatastore = 1
	FilesDatastore   = 2
	FirstDatastore   = 100
)

// Datastore is a repository of images, or (type system) where stopped machines are kept.
type Datastore struct {
	ID       int               `json:"id"`
	Name     string            `json:"name"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	Type     DatastoreType     `json:"type"`
	Driver   string            `json:"driver"`    // "path"
	BasePath string            `json:"base_path"` // directory, for "path"; URL, for "http"
	Clusters []int             `json:"clusters"`
	Template template.Template `json:"template"`
}

// Image is an object in an image or file datastore.
type Image struct {
	ID          int               `json:"id"`
	Name        string            `json:"name"`
	UID         int               `json:"uid"`
	GID         int               `json:"gid"`
	Type        ImageType         `json:"type"`
	State       ImageState        `json:"state"` // stored: LOCKED, READY, ERROR, DISABLED, DELETE; USED is derived
	Persistent  bool              `json:"persistent"`
	DatastoreID int               `json:"datastore_id"`
	Path        string            `json:"path,omitempty"`   // where it was imported from
	Source      string            `json:"source,omitempty"` // object's name in the repository
	Format      string            `json:"format,omitempty"`
	Digest      string            `json:"digest,omitempty"`       // of the chunk index
	Expect      string            `json:"expect,omitempty"`       // digest the import must find, ALGORITHM:HEX
	Size        int64             `json:"size"`                   // virtual size
	ObjectSize  int64             `json:"object_size,omitempty"`  // bytes of the object in the repository; raw: as Size
	StoredBytes int64             `json:"stored_bytes,omitempty"` // allocated in the repository
	Registered  bool              `json:"registered,omitempty"`   // the object was there before: its content is not Hayloft's to delete
	IndexIn     int               `json:"index_in,omitempty"`     // datastore of the chunk index when that is not beside the object; 0: it is
	SavedFrom   *SavedFrom        `json:"saved_from,omitempty"`   // made by disk-saveas
	ClonedFrom  *ClonedFrom       `json:"cloned_from,omitempty"`
	Flatten     bool              `json:"flatten,omitempty"` // is to be made independent of ClonedFrom
	Error       string            `json:"error,omitempty"`
	ErrorClass  string            `json:"error_class,omitempty"` // of Error, see fault.Class
	RegTime     int64             `json:"reg_time"`
	Template    template.Template `json:"template"`
}

// Compatible reports whether machines of the hypervisor can use the image as a disk, and if not, why.
func (i *Image) Compatible(hypervisor string) (bool, string) {
	switch {
	case hypervisor == "lxc" && !i.Tree():
		return false, "containers need an archive or squashfs, and it is " + i.Format
	case hypervisor == "qemu" && i.Tree():
		return false, "virtual machines need a disk image, and it is " + i.Format
	}
	return true, ""
}

// SavedFrom names the disk that an image is being or was saved from.
type SavedFrom struct {
	VM        int    `json:"vm"`
	Disk      int    `json:"disk"`
	Operation uint64 `json:"operation"`
	Moved     int64  `json:"moved,omitempty"` // bytes that were written to the repository for it, once it is there
}

// ClonedFrom names the image that an image was cloned from, and how its datastore did that (repository.CloneKind), once it has.
type ClonedFrom struct {
	ImageID int    `json:"image_id"`
	Kind    string `json:"kind,omitempty"`
}

// Depends reports whether the image may be a clone that needs its parent's object.
func (i *Image) Depends() bool {
	return i.ClonedFrom != nil && i.ClonedFrom.Kind != "" && i.ClonedFrom.Kind != "copy"
}

// Tree reports whether the image is an archive or file system that containers run from.
func (i *Image) Tree() bool {
	switch i.Format {
	case "tar", "tar.gz", "tar.zst", "squashfs":
		return true
	}
	return false
}

// Prefetch is the wish to have an image on a host before a machine there needs it.
type Prefetch struct {
	ImageID int           `json:"image_id"`
	HostID  int           `json:"host_id"`
	Serial  uint64        `json:"serial"`         // of the request; a new one begins anew
	Rate    int64         `json:"rate,omitempty"` // bytes a second; 0: no bound
	State   PrefetchState `json:"state"`
	Done    int64         `json:"done,omitempty"` // bytes
	Total   int64         `json:"total,omitempty"`
	Error   string        `json:"error,omitempty"`
	Class   string        `json:"error_class,omitempty"` // of Error, see fault.Class
	Time    int64         `json:"time"`                  // Unix seconds of the request
}

// PrefetchState is how far a Prefetch is.
type PrefetchState string

// The states. The host is told of those that are wanted.
const (
	PrefetchWanted PrefetchState = "wanted"
	PrefetchDone   PrefetchState = "done"
	PrefetchFailed PrefetchState = "failed"
)

// VMTemplate is what machines are made from.
type VMTemplate struct {
	ID       int               `json:"id"`
	Name     string            `json:"name"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	RegTime  int64             `json:"reg_time"`
	Template template.Template `json:"template"`
}
