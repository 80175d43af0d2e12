package repository

import (
	"strings"

	"hayloft/cloud/fault"
	"hayloft/image"
)

const maxDepth = 4

// CheckName refuses (fault.Invalid) what is not one to four names of image.CheckName with slashes between.
func CheckName(name string) error {
	elements := strings.Split(name, "/")
	if len(elements) > maxDepth {
		return fault.Errorf(fault.Invalid, "object name %q: more than %d levels", name, maxDepth)
	}
	for _, e := range elements {
		if err := image.CheckName(e); err != nil {
			return err
		}
	}
	return nil
}
