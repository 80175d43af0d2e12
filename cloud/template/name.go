package template

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"hayloft/cloud/fault"
)

// MaxName is the length of an object's name in characters.
const MaxName = 128

const forbiddenInNames = "&|:\\\";/'#{}$<>"

// ValidName checks the name of an object by OpenNebula's rules. kind is what the message calls the
// object; users and groups have no spaces in their names. Names . and .., and white space at either
// end, are refused beyond those rules: they go wrong in paths and in command lines.
func ValidName(kind, name string) error {
	refuse := func(format string, args ...any) error {
		return fault.Errorf(fault.Invalid, "%s name %q: "+format, append([]any{kind, shorten(name)}, args...)...)
	}
	switch {
	case name == "":
		return fault.Errorf(fault.Invalid, "%s name is empty", kind)
	case !utf8.ValidString(name):
		return refuse("it is not UTF-8")
	case utf8.RuneCountInString(name) > MaxName:
		return refuse("it has %d characters, %d are allowed", utf8.RuneCountInString(name), MaxName)
	case name == "." || name == "..":
		return refuse("it means a directory")
	case strings.TrimSpace(name) != name:
		return refuse("it begins or ends with white space")
	}
	for _, r := range name {
		switch {
		case strings.ContainsRune(forbiddenInNames, r):
			return refuse("it contains %q, none of %s is allowed", string(r), forbiddenInNames)
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', !carried(r):
			return refuse("it contains the control character %U", r)
		case unicode.IsSpace(r) && (kind == "user" || kind == "group"):
			return refuse("it contains a space")
		}
	}
	return nil
}
