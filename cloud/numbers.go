package cloud

import (
	"strings"

	"hayloft/cloud/fault"
)

// parseName finds the number of a name. The error lists the names there are.
func parseName(labels []label, kind, name string) (int, error) {
	known := make([]string, 0, len(labels))
	for n, l := range labels {
		if l.name == "" {
			continue
		}
		if strings.EqualFold(l.name, name) {
			return n, nil
		}
		known = append(known, l.name)
	}
	return 0, fault.Errorf(fault.Invalid, "%s %q is unknown: use one of %s", kind, name, strings.Join(known, ", "))
}
