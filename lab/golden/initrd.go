package golden

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// initrdTree holds busybox, the modules and the script that finds the root file system.
func (s source) initrdTree(ctx context.Context) (*tree, error) {
	init, err := script("initrd.sh")
	if err != nil {
		return nil, err
	}
	kernels, err := filepath.Glob(filepath.Join(s.dir, s.packages.Kernel, "lib/modules/*"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("package %s: %d module directories, want 1", s.packages.Kernel, len(kernels))
	}
	release := filepath.Base(kernels[0])
	modules, err := findModules(kernels[0], append(append([]string{}, bootModules...), cdromModules...))
	if err != nil {
		return nil, err
	}
	t := newTree()
	errs := []error{s.addBusybox(ctx, t), t.file("init", 0o755, init), addModules(t, release, modules),
		t.file("lib/modules/boot", 0o644, []byte(strings.Join(bootModules, " "))),
		t.file("lib/modules/cdrom", 0o644, []byte(strings.Join(cdromModules, " ")))}
	for _, dir := range []string{"dev", "proc", "sys", "root"} {
		errs = append(errs, t.dir(dir, 0o755))
	}
	return t, errors.Join(errs...)
}

// addModules lays out modules with the modules.dep that modprobe reads: each name with all it depends on,
// nearest first.
func addModules(t *tree, release string, modules []module) error {
	byName := map[string]module{}
	for _, m := range modules {
		byName[m.Name] = m
	}
	var dep strings.Builder
	var errs []error
	for _, m := range modules {
		dep.WriteString(m.Name + ".ko:")
		for _, name := range closure(byName, m) {
			dep.WriteString(" " + name + ".ko")
		}
		dep.WriteString("\n")
		errs = append(errs, t.file("lib/modules/"+release+"/"+m.Name+".ko", 0o644, m.Data))
	}
	errs = append(errs, t.file("lib/modules/"+release+"/modules.dep", 0o644, []byte(dep.String())))
	return errors.Join(errs...)
}

// closure lists everything m depends on, each before what it depends on itself.
func closure(all map[string]module, m module) []string {
	var order []string
	seen := map[string]bool{}
	var visit func(module)
	visit = func(m module) {
		for _, name := range m.Depends {
			if dep, ok := all[name]; ok && !seen[name] {
				seen[name] = true
				visit(dep)
				order = append([]string{name}, order...)
			}
		}
	}
	visit(m)
	return order
}
