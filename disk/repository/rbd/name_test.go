package rbd

import (
	"strings"
	"testing"

	"hayloft/disk"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

func FuzzNames(f *testing.F) {
	for _, s := range []string{"a", "d/e r@f%2F", "ü/🐎", "%", "%2f", "%zz", "a b", ".hayloft.part.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if repository.CheckName(s) == nil {
			image := encode(s)
			if got, ok := decode(image); !ok || got != s || strings.ContainsAny(image, "/@ ") || strings.HasPrefix(image, ".") {
				t.Errorf("%q is %q is %q", s, image, got)
			}
			for _, hidden := range []string{partOf(s), deadPrefix + "10a." + image} {
				if got, ok := unfinished(hidden); !ok || got != s {
					t.Errorf("%q is %q", hidden, got)
				}
				if _, ok := decode(hidden); ok {
					t.Errorf("%q is an object", hidden)
				}
			}
		}
		if name, ok := decode(s); ok && encode(name) != s {
			t.Errorf("%q is %q is %q", s, name, encode(name))
		}
	})
}

func FuzzKeyring(f *testing.F) {
	f.Add("[client.a]\n\tkey = AQ==\n", "a")
	f.Fuzz(func(t *testing.T, text, user string) {
		if key, found := findKey(text, user); found && (key == "" || !strings.Contains(text, key)) {
			t.Errorf("%q", key)
		}
	})
}

func TestKeyring(t *testing.T) {
	text := "# [client.no]\n[client.a]\n\tkey = AQa==\n\tcaps mon = \"key = x\"\n[client.b]\nkey=AQb==\n[client.c]\n"
	for user, want := range map[string]string{"a": "AQa==", "b": "AQb==", "c": "", "d": "", "no": ""} {
		if got, found := findKey(text, user); got != want || found != (want != "") {
			t.Errorf("%s: %q", user, got)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, row := range []disk.Repository{
		{Path: ""}, {Path: "/n"}, {Path: "p/"}, {Path: "p/n/m"}, {Path: "p@s"}, {Path: "-p"}, {Path: "p/n\n"},
		{Path: "p", Options: map[string]string{"CEPH_CONF": "ceph.conf"}}, {Path: "p", Options: map[string]string{"CEPH_KEYRING": "k"}},
		{Path: "p", Options: map[string]string{"CEPH_USER": "client.a"}}, {Path: "p", Options: map[string]string{"CEPH_USER": "a b"}},
		{Path: "p", Options: map[string]string{"ATTACH": "both"}},
	} {
		row.ID = 7
		if _, err := New(row); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7") {
			t.Errorf("%+v: %v", row, err)
		}
	}
	if _, err := New(disk.Repository{Path: "p/n", Options: map[string]string{"ATTACH": "KERNEL"}}); err != nil {
		t.Error(err)
	}
}
