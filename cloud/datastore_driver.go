package cloud

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"hayloft/cloud/fault"
)

// DatastoreDriver is what is known of a repository driver (DS_MAD) without opening it.
type DatastoreDriver struct {
	Name string
	// Also are OpenNebula's names for it.
	Also []string
	// Options are the attributes of a datastore that the driver gets to see, here and on hosts. What is in a template can be
	// read by everybody who may see the datastore, so secrets are in files that it names.
	Options []string
	// Base says what BASE_PATH is.
	Base BaseKind
	// ReadOnly: images in it are registered with SOURCE, none can be made, cloned into, or saved there.
	ReadOnly bool
	// Persistent images are possible.
	Persistent bool
	// System datastores are possible: machines that are stopped or undeployed are kept there.
	System bool
}

// BaseKind is what a BASE_PATH is.
type BaseKind string

// The kinds.
const (
	BaseDirectory BaseKind = "a clean absolute path"
	BaseURL       BaseKind = "a URL of the form http://host/path or https://host/path"
	BaseBucket    BaseKind = "a URL of the form https://host[:port]/bucket[/prefix]"
	BaseExport    BaseKind = "of the form server:/directory"
	BaseGroup     BaseKind = "the name of a volume group"
	BasePool      BaseKind = "of the form POOL or POOL/NAMESPACE"
	BaseAny       BaseKind = "a URL, or a clean absolute path"
)

// datastoreDrivers in the order of the documentation.
var datastoreDrivers = []DatastoreDriver{
	{Name: "path", Also: []string{"fs", "shared"}, Base: BaseDirectory, Persistent: true, System: true, Options: []string{"UNORDERED_BACK"}},
	{Name: "nfs", Base: BaseExport, Persistent: true, System: true, Options: []string{"MOUNT_OPTIONS", "UNORDERED_BACK"}},
	{Name: "ssh", Base: BaseDirectory, Persistent: true, System: true,
		Options: []string{"HOST", "PORT", "KEY_FILE", "KNOWN_HOSTS_FILE", "PLAIN_DATA", "REMOTE_PROGRAM"}},
	{Name: "http", Base: BaseURL, ReadOnly: true,
		Options: []string{"CA_FILE", "USER", "PASSWORD_FILE", "TOKEN_FILE", "PLAIN_CREDENTIALS", "PROXY", "PROXY_PASSWORD_FILE"}},
	{Name: "s3", Base: BaseBucket, System: true,
		Options: []string{"ACCESS_KEY_ID", "SECRET_KEY_FILE", "REGION", "CA_FILE", "PLAIN_CREDENTIALS", "SPOOL_DIR", "PROXY", "PROXY_PASSWORD_FILE"}},
	{Name: "iscsi", Base: BaseGroup, Persistent: true,
		Options: []string{"HOST", "PORT", "KEY_FILE", "KNOWN_HOSTS_FILE", "PORTAL", "TARGET", "POOL", "ATTACH", "CHAP_USER", "CHAP_PASSWORD_FILE", "UNORDERED_BACK"}},
	{Name: "rbd", Also: []string{"ceph"}, Base: BasePool, Persistent: true, System: true,
		Options: []string{"CEPH_CONF", "CEPH_USER", "CEPH_KEYRING", "ATTACH", "UNORDERED_BACK"}},
	{Name: "url", Base: BaseAny, ReadOnly: true, Options: []string{"FORMAT", "UID", "GID",
		"CA_FILE", "USER", "PASSWORD_FILE", "TOKEN_FILE", "PLAIN_CREDENTIALS", "PROXY", "PROXY_PASSWORD_FILE"}},
}

// DatastoreDriverNames are the drivers' own names.
func DatastoreDriverNames() []string {
	var names []string
	for _, d := range datastoreDrivers {
		names = append(names, d.Name)
	}
	return names
}

// LookupDatastoreDriver finds a driver by a name of it, "" being path; fault.Unsupported names those there are.
func LookupDatastoreDriver(name string) (DatastoreDriver, error) {
	if name == "" {
		return datastoreDrivers[0], nil
	}
	for _, d := range datastoreDrivers {
		if d.Name == name || slices.Contains(d.Also, name) {
			return d, nil
		}
	}
	return DatastoreDriver{}, fault.Errorf(fault.Unsupported, "DS_MAD %q is not supported; there are %s", name, strings.Join(DatastoreDriverNames(), ", "))
}

// CheckBase refuses a BASE_PATH that the driver could never use, and names and passwords in it, which everybody could read.
func (d DatastoreDriver) CheckBase(base string) error {
	bad := fault.Errorf(fault.Invalid, "BASE_PATH %q is not %s", base, d.Base)
	isDirectory := filepath.IsAbs(base) && filepath.Clean(base) == base
	switch d.Base {
	case BaseDirectory:
		if !isDirectory {
			return bad
		}
	case BaseURL, BaseBucket:
		return checkBaseURL(base, bad, "http", "https")
	case BaseAny:
		if !isDirectory {
			return checkBaseURL(base, bad)
		}
	case BaseExport:
		server, directory, ok := strings.Cut(base, ":/")
		if !ok || server == "" || strings.ContainsAny(server, "/ \t\n") || filepath.Clean("/"+directory) != "/"+directory {
			return bad
		}
	case BaseGroup, BasePool:
		if base == "" || strings.HasPrefix(base, "-") || strings.ContainsAny(base, " \t\n@:") || strings.Count(base, "/") > 1 {
			return bad
		}
	}
	return nil
}

func checkBaseURL(base string, bad error, schemes ...string) error {
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return fault.Errorf(fault.Invalid, "BASE_PATH is not a URL")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fault.Errorf(fault.Invalid, "BASE_PATH must be a URL without user, query and fragment")
	case u.Scheme == "" || u.Host == "" || len(schemes) > 0 && !slices.Contains(schemes, u.Scheme):
		return bad
	}
	return nil
}
