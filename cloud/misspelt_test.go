package cloud

import "testing"

func TestMisspelt(t *testing.T) {
	for _, row := range []struct{ driver, name, want string }{
		{"ssh", "HSOT", "HOST"},
		{"ssh", "SSH_HSOT", "HOST"},
		{"ssh", "SSH_HOST", "HOST"},
		{"ssh", "HOSTS", "HOST"},
		{"ssh", "KEYFILE", "KEY_FILE"},
		{"ssh", "KNOWN_HOST_FILE", "KNOWN_HOSTS_FILE"},
		{"ssh", "PLAINDATA", "PLAIN_DATA"},
		{"ssh", "CACHE_MOED", "CACHE_MODE"},
		{"ssh", "BASE_PTH", "BASE_PATH"},
		{"s3", "S3_REGOIN", "REGION"},
		{"rbd", "CEPH_KYERING", "CEPH_KEYRING"},
		{"url", "FORMATS", "FORMAT"},
		{"iscsi", "ISCSI_HOST", "HOST"},
		{"path", "UNORDERD_BACK", "UNORDERED_BACK"},
		{"path", "HOST", ""}, // an option of others
		{"ssh", "HOST", ""},
		{"ssh", "COMMENT", ""},
		{"ssh", "LIMIT_MB", ""},
		{"path", "TM_MAD", ""},
		{"http", "USES", "USER"},
		{"http", "OWNER", ""}, // two letters are too many for USER
		{"url", "VID", "UID"},
		{"url", "ID", "UID"},
		{"url", "A", ""},
	} {
		d, err := LookupDatastoreDriver(row.driver)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Misspelt(row.name); got != row.want {
			t.Errorf("%s: %s means %q, want %q", row.driver, row.name, got, row.want)
		}
	}
	// Whatever there is means itself, in each driver.
	for _, name := range DatastoreDriverNames() {
		d, _ := LookupDatastoreDriver(name)
		for _, option := range append(d.Options, datastoreAttributes...) {
			if got := d.Misspelt(option); got != "" {
				t.Errorf("%s: %s means %q", name, option, got)
			}
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, row := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "AB", 2}, {"AB", "", 2}, {"AB", "AB", 0}, {"AB", "BA", 1}, {"HOST", "HSOT", 1}, {"KITTEN", "SITTING", 3},
		{"ABCD", "BADC", 2}, {"PORT", "SPORTS", 2},
	} {
		if got := editDistance(row.a, row.b); got != row.want {
			t.Errorf("%s to %s: %d, want %d", row.a, row.b, got, row.want)
		}
	}
}
