package guest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDiscover(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a/a_test.go":          "package a\nfunc TestGuestTwo(t *testing.T) { helper(t) }\nfunc TestOther(t *testing.T) {}",
		"a/b_test.go":          "package a\nfunc TestGuestOne(t *testing.T) {}\nfunc helper(t *testing.T) { labtest.Guest(t) }\n",
		"a/c_test.go":          "package a\nfunc program(t *testing.T) string { return labtest.Program(t, \"cmd/a\") }",
		"c/c_test.go":          "package c\n// labtest.Guest\nfunc TestGuestOfAnInn(t *testing.T) { labtest.Root(t) }",
		"d/testdata/d_test.go": "package d\nfunc TestGuestData(t *testing.T) { labtest.Guest(t) }",
		"e/e.go":               "package e\nfunc TestGuestPlain() { labtest.Guest(nil) }",
		"f/f_test.go":          "package f\nfunc TestGuest broken",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	found, err := discover(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].path != "a" || !slices.Equal(found[0].tests, []string{"TestGuestOne", "TestGuestTwo"}) ||
		!slices.Equal(found[0].programs, []string{"cmd/a"}) {
		t.Errorf("found %+v", found)
	}
}
