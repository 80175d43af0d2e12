package localstore

import "hayloft/cloud/fault"

const maxVolumeName = 100

// CheckVolume refuses (fault.Invalid) names that are not as VolumeSpec has them, and sizes that are not above 0.
func CheckVolume(v VolumeSpec) error {
	if err := CheckVolumeName(v.Name); err != nil {
		return err
	}
	if v.Size <= 0 || v.Size > maxVolumeSize {
		return fault.Errorf(fault.Invalid, "volume %s: %d bytes; above 0 and at most %d are possible", v.Name, v.Size, int64(maxVolumeSize))
	}
	if v.UID < 0 || v.GID < 0 {
		return fault.Errorf(fault.Invalid, "volume %s: owner %d:%d", v.Name, v.UID, v.GID)
	}
	return nil
}

// maxVolumeSize keeps sums of sizes within 64 bits: 2 PiB.
const maxVolumeSize = 1 << 51

// CheckVolumeName refuses (fault.Invalid) what is not lower case letters, digits, "." and "-", up to 100 bytes, the first
// and the last a letter or digit.
func CheckVolumeName(name string) error {
	if name == "" || len(name) > maxVolumeName {
		return fault.Errorf(fault.Invalid, "volume name %.40q: 1 to %d bytes", name, maxVolumeName)
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if letter || (c == '.' || c == '-') && i > 0 && i < len(name)-1 {
			continue
		}
		return fault.Errorf(fault.Invalid, "volume name %q: lower case letters and digits, with . and - between them", name)
	}
	return nil
}
