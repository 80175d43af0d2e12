package cloud

import "strings"

// DiskType is how the bytes of an image, or of the images of a datastore, are reached.
type DiskType int

// The disk types.
const (
	DiskTypeFile          DiskType = 0
	DiskTypeCDROM         DiskType = 1
	DiskTypeBlock         DiskType = 2
	DiskTypeRBD           DiskType = 3
	DiskTypeRBDCDROM      DiskType = 4
	DiskTypeGluster       DiskType = 5
	DiskTypeGlusterCDROM  DiskType = 6
	DiskTypeSheepdog      DiskType = 7
	DiskTypeSheepdogCDROM DiskType = 8
	DiskTypeISCSI         DiskType = 9
	DiskTypeFilesystem    DiskType = 10
	DiskTypeNone          DiskType = 255
)

var diskTypeLabels = [...]label{
	DiskTypeFile:          {name: "FILE"},
	DiskTypeCDROM:         {name: "CDROM"},
	DiskTypeBlock:         {name: "BLOCK"},
	DiskTypeRBD:           {name: "RBD"},
	DiskTypeRBDCDROM:      {name: "RBD_CDROM"},
	DiskTypeGluster:       {name: "GLUSTER"},
	DiskTypeGlusterCDROM:  {name: "GLUSTER_CDROM"},
	DiskTypeSheepdog:      {name: "SHEEPDOG"},
	DiskTypeSheepdogCDROM: {name: "SHEEPDOG_CDROM"},
	DiskTypeISCSI:         {name: "ISCSI"},
	DiskTypeFilesystem:    {name: "FILESYSTEM"},
}

// String gives OpenNebula's name; DiskTypeNone has the empty one.
func (t DiskType) String() string {
	if t == DiskTypeNone {
		return ""
	}
	return fullName(diskTypeLabels[:], int(t))
}

// ParseDiskType is the inverse of String, in any case.
func ParseDiskType(name string) (DiskType, error) {
	if strings.TrimSpace(name) == "" {
		return DiskTypeNone, nil
	}
	n, err := parseName(diskTypeLabels[:], "disk type", name)
	return DiskType(n), err
}
