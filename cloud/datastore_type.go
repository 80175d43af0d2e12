package cloud

import "strings"

// DatastoreType is a datastore's TYPE: what it keeps.
type DatastoreType int

// The types of datastores.
const (
	DatastoreTypeImage  DatastoreType = 0 // disk images
	DatastoreTypeSystem DatastoreType = 1 // the disks of machines
	DatastoreTypeFile   DatastoreType = 2 // kernels, ramdisks, context files
	DatastoreTypeBackup DatastoreType = 3
)

var datastoreTypeLabels = [...]label{
	DatastoreTypeImage:  {"IMAGE_DS", "img"},
	DatastoreTypeSystem: {"SYSTEM_DS", "sys"},
	DatastoreTypeFile:   {"FILE_DS", "fil"},
	DatastoreTypeBackup: {"BACKUP_DS", "bck"},
}

func (t DatastoreType) String() string { return fullName(datastoreTypeLabels[:], int(t)) }

// Short is the type in a table's column, such as img.
func (t DatastoreType) Short() string { return shortName(datastoreTypeLabels[:], int(t)) }

// ParseDatastoreType is the inverse of String, in any case; _DS may be left out.
func ParseDatastoreType(name string) (DatastoreType, error) {
	if !strings.HasSuffix(strings.ToUpper(name), "_DS") {
		name += "_DS"
	}
	n, err := parseName(datastoreTypeLabels[:], "datastore type", name)
	return DatastoreType(n), err
}

// DatastoreState is a datastore's STATE.
type DatastoreState int

// The states of a datastore.
const (
	DatastoreStateReady    DatastoreState = 0
	DatastoreStateDisabled DatastoreState = 1
)

var datastoreStateLabels = [...]label{
	DatastoreStateReady:    {"READY", "on"},
	DatastoreStateDisabled: {"DISABLED", "off"},
}

func (s DatastoreState) String() string { return fullName(datastoreStateLabels[:], int(s)) }

// Short is the state in a table's column, such as on.
func (s DatastoreState) Short() string { return shortName(datastoreStateLabels[:], int(s)) }
