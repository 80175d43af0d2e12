// Package drivers is the list of repository drivers there are. What is known of each without opening it, its options
// among that, is in cloud.LookupDatastoreDriver.
package drivers

import (
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/http"
	"hayloft/disk/repository/iscsi"
	"hayloft/disk/repository/nfs"
	"hayloft/disk/repository/path"
	"hayloft/disk/repository/rbd"
	"hayloft/disk/repository/s3"
	"hayloft/disk/repository/ssh"
	"hayloft/disk/repository/url"
)

// Open opens the repository that r describes; fault.Unsupported when there is no such driver. Nothing is contacted yet. What
// it comes to hold (connections, processes) ends by itself when it is idle, or with Close, where it has that.
func Open(r disk.Repository) (repository.Repository, error) {
	switch r.Driver {
	case "path", "":
		return path.New(r)
	case "nfs":
		return nfs.New(r)
	case "ssh":
		return ssh.New(r)
	case "http":
		return http.New(r)
	case "s3":
		return s3.New(r)
	case "iscsi":
		return iscsi.New(r)
	case "rbd":
		return rbd.New(r)
	case "url":
		return url.New(r)
	}
	return nil, fault.Errorf(fault.Unsupported, "datastore %d: no repository driver %q", r.ID, r.Driver)
}
