// Package drivers is the list of repository drivers there are.
package drivers

import (
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/http"
	"hayloft/disk/repository/path"
)

// Open opens the repository that r describes; fault.Unsupported when there is no such driver. Nothing is
// contacted yet.
func Open(r disk.Repository) (repository.Repository, error) {
	switch r.Driver {
	case "path", "":
		return path.New(r)
	case "http":
		return http.New(r)
	}
	return nil, fault.Errorf(fault.Unsupported, "datastore %d: no repository driver %q", r.ID, r.Driver)
}
