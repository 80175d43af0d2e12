package cloud

import (
	"testing"

	"hayloft/cloud/fault"
)

func TestLookupDatastoreDriver(t *testing.T) {
	for given, want := range map[string]string{"": "path", "fs": "path", "shared": "path", "ceph": "rbd", "s3": "s3"} {
		if d, err := LookupDatastoreDriver(given); err != nil || d.Name != want {
			t.Errorf("%q: %q, %v", given, d.Name, err)
		}
	}
	if _, err := LookupDatastoreDriver("vcenter"); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

func TestCheckBase(t *testing.T) {
	for _, row := range []struct {
		driver, base string
		want         bool
	}{
		{"path", "/srv/images", true}, {"path", "/srv/../images", false}, {"path", "srv", false}, {"path", "", false},
		{"nfs", "nas:/export/images", true}, {"nfs", "nas:/", true}, {"nfs", "nas:export", false}, {"nfs", "/export", false}, {"nfs", "nas:/a/../b", false},
		{"ssh", "/srv/images", true}, {"ssh", "host:/srv", false},
		{"http", "https://images.example.org/x", true}, {"http", "https://u:p@images.example.org/x", false}, {"http", "ftp://x/y", false},
		{"s3", "https://s3.example.org/bucket/prefix", true}, {"s3", "/bucket", false},
		{"iscsi", "vg0", true}, {"iscsi", "-y", false}, {"iscsi", "", false}, {"iscsi", "a b", false},
		{"rbd", "images", true}, {"rbd", "images/lab", true}, {"rbd", "a/b/c", false}, {"rbd", "a@snap", false},
		{"url", "nfs://nas/export", true}, {"url", "/srv/vmware", true}, {"url", "json:{}", false}, {"url", "", false},
	} {
		d, err := LookupDatastoreDriver(row.driver)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.CheckBase(row.base); (err == nil) != row.want || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s %q: %v", row.driver, row.base, err)
		}
	}
}
