package lvm

import (
	"strings"

	"hayloft/cloud/fault"
)

const (
	maxDevice = 127 // bytes of a device mapper name
	maxTag    = 1024
)

// reserved parts of names are LVM's for the volumes that it makes inside others.
func reserved() []string {
	return []string{"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata",
		"_tmeta", "_vdata", "_vorigin", "_wcorig", "_imeta", "_iorig"}
}

// CheckGroup refuses (fault.Invalid) what cannot name a volume group.
func CheckGroup(name string) error { return checkName("volume group", name) }

// CheckVolume refuses (fault.Invalid) what cannot name a logical volume in that group.
func CheckVolume(group, name string) error {
	if err := CheckGroup(group); err != nil {
		return err
	}
	if err := checkName("logical volume", name); err != nil {
		return err
	}
	if strings.HasPrefix(name, "snapshot") || strings.HasPrefix(name, "pvmove") {
		return fault.Errorf(fault.Invalid, "logical volume %q: names that begin with snapshot or pvmove are LVM's own", name)
	}
	for _, r := range reserved() {
		if strings.Contains(name, r) {
			return fault.Errorf(fault.Invalid, "logical volume %q: names with %s in them are LVM's own", name, r)
		}
	}
	if n := len(DeviceName(group, name)); n > maxDevice {
		return fault.Errorf(fault.Invalid, "logical volume %s/%s: its device would have a name of %d bytes, at most %d", group, name, n, maxDevice)
	}
	return nil
}

func checkName(what, name string) error {
	switch {
	case name == "":
		return fault.Errorf(fault.Invalid, "%s: the name is empty", what)
	case len(name) > maxDevice:
		return fault.Errorf(fault.Invalid, "%s %q...: a name of %d bytes, at most %d", what, name[:16], len(name), maxDevice)
	case name == "." || name == "..":
		return fault.Errorf(fault.Invalid, "%s %q is not a name", what, name)
	case name[0] == '-':
		return fault.Errorf(fault.Invalid, "%s %q begins with a dash", what, name)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return !plain(r) }); i >= 0 {
		return fault.Errorf(fault.Invalid, "%s %q: only letters, digits and + _ . - are allowed", what, name)
	}
	return nil
}

func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+_.-", r)
}

// CheckTag refuses (fault.Invalid) what LVM does not take as a tag.
func CheckTag(tag string) error {
	if tag == "" || len(tag) > maxTag || tag[0] == '-' {
		return fault.Errorf(fault.Invalid, "tag %q: 1 to %d bytes, not beginning with a dash", tag[:min(len(tag), 40)], maxTag)
	}
	if i := strings.IndexFunc(tag, func(r rune) bool { return !plain(r) && !strings.ContainsRune("/=!:&#", r) }); i >= 0 {
		return fault.Errorf(fault.Invalid, "tag %q: only letters, digits and + _ . - / = ! : & # are allowed", tag)
	}
	return nil
}

// DeviceName is the device mapper's name of a logical volume.
func DeviceName(group, name string) string {
	return strings.ReplaceAll(group, "-", "--") + "-" + strings.ReplaceAll(name, "-", "--")
}

// Path of the device of a logical volume that is active.
func Path(group, name string) string { return "/dev/" + group + "/" + name }
