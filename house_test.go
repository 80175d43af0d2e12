package house_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms in the order of docs/architecture.md: a room may import those below it, and those beside it
// within the same folder.
var rooms = []string{
	"cmd", "bench", "lab", "server/api/rest", "server/api", "server", "server/operation", "server/fleet", "server/lifecycle",
	"server/scheduler", "server/inventory", "agent", "wire", "hypervisor", "network", "disk", "image", "store", "cloud",
	"internal",
}

// exceptions are doors that look up on purpose.
var exceptions = map[string][]string{
	"server":     {"server/api/rest", "server/api"}, // wires the rooms together
	"hypervisor": {"disk"},                          // the vm device
	"internal":   {"cloud"},                         // error classes
}

type pkg struct {
	ImportPath string
	Doc        string
	Name       string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Doc,Name,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, "hayloft/")
		all = append(all, p)
	}
}

// roomOf is the longest room that the path is in.
func roomOf(path string) string {
	best := ""
	for _, r := range rooms {
		if (path == r || strings.HasPrefix(path, r+"/")) && len(r) > len(best) {
			best = r
		}
	}
	return best
}

func TestImportsRunDownwards(t *testing.T) {
	for _, p := range packages(t) {
		from := roomOf(p.ImportPath)
		for _, imported := range p.Imports {
			path, ours := strings.CutPrefix(imported, "hayloft/")
			if !ours {
				continue
			}
			to := roomOf(path)
			if from == "" || to == "" {
				t.Errorf("%s imports %s: one of them is in no room", p.ImportPath, path)
				continue
			}
			if to == "internal" || from == to || slices.Index(rooms, to) > slices.Index(rooms, from) || slices.Contains(exceptions[from], to) {
				continue
			}
			t.Errorf("%s imports %s: up the house", p.ImportPath, path)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" && p.ImportPath != "hayloft" {
			t.Errorf("package %s has no comment", p.ImportPath)
		}
	}
}

func TestTheModelDoesNoIO(t *testing.T) {
	for _, p := range packages(t) {
		if roomOf(p.ImportPath) != "cloud" {
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains([]string{"net", "net/http", "os/exec", "time", "os"}, imported) {
				t.Errorf("%s imports %s", p.ImportPath, imported)
			}
		}
	}
}
