package guest

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"hayloft/internal/command"
)

// inner is a package of the module with tests for the kernel guest.
type inner struct {
	path     string // below the module: disk/localstore/lvm
	dir      string
	tests    []string
	programs []string // packages of the module, that labtest.Program is called with
}

// discover finds the packages below root whose tests call labtest.Guest, and in them all tests named TestGuest....
func discover(root string) ([]inner, error) {
	var found []inner
	err := filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); dir != root && (name == "testdata" || name[0] == '.' || name[0] == '_') {
			return filepath.SkipDir
		}
		p, err := guestTests(dir)
		if len(p.tests) > 0 {
			path, _ := filepath.Rel(root, dir)
			p.path, p.dir = filepath.ToSlash(path), dir
			found = append(found, p)
		}
		return err
	})
	return found, err
}

func guestTests(dir string) (inner, error) {
	var p inner
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return p, err
	}
	calls := false
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return p, err
		}
		if !bytes.Contains(text, []byte("TestGuest")) && !bytes.Contains(text, []byte("labtest.")) {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution)
		if err != nil {
			continue // somebody's work under way, which go vet tells of
		}
		calls = calls || len(callsOf(parsed, "Guest")) > 0
		for _, call := range callsOf(parsed, "Program") {
			if pkg, ok := call.Args[len(call.Args)-1].(*ast.BasicLit); ok {
				name, _ := strconv.Unquote(pkg.Value)
				p.programs = append(p.programs, name)
			}
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "TestGuest") {
				p.tests = append(p.tests, f.Name.Name)
			}
		}
	}
	if !calls {
		return inner{}, nil
	}
	slices.Sort(p.tests)
	return p, nil
}

// callsOf finds the calls of a function of labtest in a file.
func callsOf(file *ast.File, name string) []*ast.CallExpr {
	var found []*ast.CallExpr
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == name {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "labtest" {
				found = append(found, call)
			}
		}
		return true
	})
	return found
}

// compile makes the package's test program and returns what the guest must have of it, by name below /programs.
func (p inner) compile(ctx context.Context, dir string) (map[string]string, error) {
	binary := filepath.Join(dir, strings.ReplaceAll(p.path, "/", "_")+".test")
	_, err := (command.Exec{}).Run(ctx, command.Cmd{Name: "go", Args: []string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", binary, "."},
		Dir: p.dir, Env: []string{"CGO_ENABLED=0"}})
	if err != nil {
		return nil, err
	}
	files := map[string]string{p.program(): binary}
	for _, pkg := range p.programs {
		files[pkg] = filepath.Join(dir, strings.ReplaceAll(pkg, "/", "_"))
		_, err := (command.Exec{}).Run(ctx, command.Cmd{Name: "go", Args: []string{"build", "-trimpath", "-ldflags=-s -w", "-o", files[pkg], "hayloft/" + pkg},
			Env: []string{"CGO_ENABLED=0"}})
		if err != nil {
			return nil, err
		}
	}
	data := filepath.Join(p.dir, "testdata")
	err = filepath.WalkDir(data, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rest, _ := filepath.Rel(p.dir, name)
			files["tests/"+p.path+"/"+filepath.ToSlash(rest)] = name
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("%s: %w", data, err)
	}
	return files, nil
}

// program is the name of the test program below /programs; the guest runs it in its directory.
func (p inner) program() string { return "tests/" + p.path + "/run.test" }
