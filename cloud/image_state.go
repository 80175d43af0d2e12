package cloud

// ImageState is an image's STATE.
type ImageState int

// The states of an image.
const (
	ImageStateInit           ImageState = 0
	ImageStateReady          ImageState = 1
	ImageStateUsed           ImageState = 2
	ImageStateDisabled       ImageState = 3
	ImageStateLocked         ImageState = 4 // its content is being written
	ImageStateError          ImageState = 5
	ImageStateClone          ImageState = 6
	ImageStateDelete         ImageState = 7
	ImageStateUsedPers       ImageState = 8
	ImageStateLockedUsed     ImageState = 9
	ImageStateLockedUsedPers ImageState = 10
)

var imageStateLabels = [...]label{
	ImageStateInit:           {"INIT", "init"},
	ImageStateReady:          {"READY", "rdy"},
	ImageStateUsed:           {"USED", "used"},
	ImageStateDisabled:       {"DISABLED", "disa"},
	ImageStateLocked:         {"LOCKED", "lock"},
	ImageStateError:          {"ERROR", "err"},
	ImageStateClone:          {"CLONE", "clon"},
	ImageStateDelete:         {"DELETE", "dele"},
	ImageStateUsedPers:       {"USED_PERS", "used"},
	ImageStateLockedUsed:     {"LOCKED_USED", "lock"},
	ImageStateLockedUsedPers: {"LOCKED_USED_PERS", "lock"},
}

func (s ImageState) String() string { return fullName(imageStateLabels[:], int(s)) }

// Short is the state in a table's column, such as rdy.
func (s ImageState) Short() string { return shortName(imageStateLabels[:], int(s)) }

// ParseImageState is the inverse of String, in any case.
func ParseImageState(name string) (ImageState, error) {
	n, err := parseName(imageStateLabels[:], "image state", name)
	return ImageState(n), err
}

// ImageType is an image's TYPE: what machines use it for.
type ImageType int

// The types of images.
const (
	ImageTypeOS         ImageType = 0
	ImageTypeCDROM      ImageType = 1
	ImageTypeDatablock  ImageType = 2
	ImageTypeKernel     ImageType = 3
	ImageTypeRamdisk    ImageType = 4
	ImageTypeContext    ImageType = 5
	ImageTypeBackup     ImageType = 6
	ImageTypeFilesystem ImageType = 7
)

var imageTypeLabels = [...]label{
	ImageTypeOS:         {"OS", "OS"},
	ImageTypeCDROM:      {"CDROM", "CD"},
	ImageTypeDatablock:  {"DATABLOCK", "DB"},
	ImageTypeKernel:     {"KERNEL", "KL"},
	ImageTypeRamdisk:    {"RAMDISK", "RD"},
	ImageTypeContext:    {"CONTEXT", "CX"},
	ImageTypeBackup:     {"BACKUP", "BK"},
	ImageTypeFilesystem: {"FILESYSTEM", "FS"},
}

func (t ImageType) String() string { return fullName(imageTypeLabels[:], int(t)) }

// Short is the type in a table's column, such as DB.
func (t ImageType) Short() string { return shortName(imageTypeLabels[:], int(t)) }

// ParseImageType is the inverse of String, in any case.
func ParseImageType(name string) (ImageType, error) {
	n, err := parseName(imageTypeLabels[:], "image type", name)
	return ImageType(n), err
}

// IsFile says that images of this type are single files handed to machines as such, which live in
// file datastores; all others are disks.
func (t ImageType) IsFile() bool {
	return t == ImageTypeKernel || t == ImageTypeRamdisk || t == ImageTypeContext
}
