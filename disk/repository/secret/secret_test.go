package secret

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for name, row := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
		class   fault.Class
	}{
		"good":     {"s3cret\n", 0o600, "s3cret", 0},
		"plain":    {"s3cret", 0o400, "s3cret", 0},
		"open":     {"s3cret", 0o644, "", fault.Permission},
		"lines":    {"s3cret\nmore", 0o600, "", fault.Invalid},
		"empty":    {"\n", 0o600, "", fault.Invalid},
		"zero":     {"s3\x00cret", 0o600, "", fault.Invalid},
		"too long": {strings.Repeat("s3cret", 5000), 0o600, "", fault.Invalid},
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(row.content), row.mode), os.Chmod(path, row.mode)); err != nil { // whatever the umask is
			t.Fatal(err)
		}
		got, err := Read("KEY_FILE", path)
		if got != row.want || (row.want == "") != (err != nil) || err != nil && (!fault.Is(err, row.class) || !strings.Contains(err.Error(), "KEY_FILE") || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "gone")} {
		if _, err := Read("KEY_FILE", path); err == nil {
			t.Error(path)
		}
	}
}

func TestYes(t *testing.T) {
	for text, want := range map[string]bool{"yes": true, "YES": true, "no": false, "": false} {
		if got, err := Yes(map[string]string{"X": text}, "X"); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := Yes(map[string]string{"X": "maybe"}, "X"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
