package image

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"hayloft/cloud/fault"
)

const maxName = 200

// CheckName refuses (fault.Invalid) what cannot name an object in every repository: empty and overlong names,
// slashes, control characters such as newlines, a leading dot or dash, and what is not UTF-8.
func CheckName(name string) error {
	switch {
	case name == "":
		return fault.Errorf(fault.Invalid, "object name is empty")
	case len(name) > maxName:
		return fault.Errorf(fault.Invalid, "object name %q...: %d bytes, at most %d", name[:16], len(name), maxName)
	case !utf8.ValidString(name):
		return fault.Errorf(fault.Invalid, "object name %q: not UTF-8", name)
	case name[0] == '.' || name[0] == '-':
		return fault.Errorf(fault.Invalid, "object name %q: starts with %q", name, name[:1])
	case strings.ContainsAny(name, `/\`):
		return fault.Errorf(fault.Invalid, "object name %q: has a slash", name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fault.Errorf(fault.Invalid, "object name %q: has the unprintable character %q", name, r)
		}
	}
	return nil
}

// CheckImageName is CheckName for the object of an image: it also refuses the names of what is kept beside one.
func CheckImageName(name string) error {
	for suffix, what := range map[string]string{IndexSuffix: "chunk indexes", ProfileSuffix: "boot profiles"} {
		if strings.HasSuffix(name, suffix) {
			return fault.Errorf(fault.Invalid, "object name %q: %s is for %s", name, suffix, what)
		}
	}
	return CheckName(name)
}
