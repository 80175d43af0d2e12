package guest

import (
	"path"
	"path/filepath"
	"testing"

	"hayloft/internal/command"
)

// BuildProgram compiles a program of the module for Config.Programs, and returns its file.
func BuildProgram(t testing.TB, importPath string) string {
	t.Helper()
	return compile(t, importPath, "build", "-trimpath")
}

// BuildTests compiles the tests of a package of the module for Config.Programs, and returns the file of the program.
func BuildTests(t testing.TB, importPath string) string {
	t.Helper()
	return compile(t, importPath, "test", "-c", "-vet=off")
}

func compile(t testing.TB, importPath string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), path.Base(importPath))
	_, err := (command.Exec{}).Run(t.Context(), command.Cmd{Name: "go", Args: append(args, "-ldflags=-s -w", "-o", file, importPath),
		Env: []string{"CGO_ENABLED=0"}})
	if err != nil {
		t.Fatal(err)
	}
	return file
}
