package iscsi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

func TestCHAP(t *testing.T) {
	s, _ := thick(t)
	if err := s.tgt.Account("hayloft", "a long password"); err != nil {
		t.Fatal(err)
	}
	file := func(text string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	right := s.repository(t, map[string]string{"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": file("a long password\n", 0o600)})
	written(t, right, "a", "secret")
	if got := content(t, right, "a"); got != "secret" {
		t.Error(got)
	}
	for name, options := range map[string]map[string]string{
		"wrong password":  {"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": file("another password\n", 0o600)},
		"unknown account": {"CHAP_USER": "nobody", "CHAP_PASSWORD_FILE": file("a long password\n", 0o600)},
		"for all to read": {"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": file("a long password\n", 0o644)},
		"no file":         {"CHAP_USER": "hayloft", "CHAP_PASSWORD_FILE": "/none"},
	} {
		_, err := s.repository(t, options).Open(t.Context(), "a")
		class(t, name, err, fault.Permission)
		if err != nil && (strings.Contains(err.Error(), "a long") || strings.Contains(err.Error(), "another") || !strings.Contains(err.Error(), "datastore 7")) {
			t.Error(err)
		}
	}
	clean(t, s)
}
