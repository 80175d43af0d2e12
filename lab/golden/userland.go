package golden

import (
	"context"
	"debug/elf"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"hayloft/internal/command"
)

//go:embed recipe
var recipe embed.FS

// script joins files of the recipe.
func script(names ...string) ([]byte, error) {
	var text []byte
	for _, name := range names {
		part, err := recipe.ReadFile(path.Join("recipe", name))
		if err != nil {
			return nil, err
		}
		text = append(text, part...)
	}
	return text, nil
}

// source is the directory with the unpacked packages, one directory each.
type source struct {
	dir      string
	packages packages
}

func (s source) read(pkg, name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(s.dir, pkg, name))
}

// addBusybox puts busybox and a link for each of its programs into /bin.
func (s source) addBusybox(ctx context.Context, t *tree) error {
	data, err := s.read("busybox-static", "bin/busybox")
	if err != nil {
		return err
	}
	list, err := s.packages.run.Run(ctx, command.Cmd{Name: filepath.Join(s.dir, "busybox-static/bin/busybox"), Args: []string{"--list"}})
	if err != nil {
		return fmt.Errorf("list of busybox's programs: %w", err)
	}
	errs := []error{t.file("bin/busybox", 0o755, data)}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			errs = append(errs, t.link("bin/"+applet, "busybox"))
		}
	}
	return errors.Join(errs...)
}

const (
	loader     = "lib64/ld-linux-x86-64.so.2"
	libraryDir = "usr/lib/x86_64-linux-gnu"
)

// addDropbear puts the SSH server, its key maker and all the libraries they need into the tree.
func (s source) addDropbear(t *tree) error {
	for _, program := range []string{"usr/sbin/dropbear", "usr/bin/dropbearkey"} {
		data, err := s.read("dropbear-bin", program)
		if err != nil {
			return err
		}
		if err := errors.Join(t.file(program, 0o755, data), s.addLibraries(t, filepath.Join(s.dir, "dropbear-bin", program))); err != nil {
			return err
		}
	}
	data, err := s.library("ld-linux-x86-64.so.2")
	if err != nil {
		return err
	}
	return t.file(loader, 0o755, data)
}

func (s source) addLibraries(t *tree, program string) error {
	file, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	defer file.Close()
	needed, err := file.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	for _, name := range needed {
		inside := path.Join(libraryDir, name)
		if _, have := t.nodes[inside]; have || strings.HasPrefix(name, "ld-linux") {
			continue
		}
		data, err := s.library(name)
		if err != nil {
			return err
		}
		if err := t.file(inside, 0o644, data); err != nil {
			return err
		}
		where, err := s.libraryPath(name)
		if err != nil {
			return err
		}
		if err := s.addLibraries(t, where); err != nil {
			return err
		}
	}
	return nil
}

// libraryPath finds a shared library by its soname in the packages.
func (s source) libraryPath(name string) (string, error) {
	for _, pkg := range userland {
		for _, dir := range []string{"lib/x86_64-linux-gnu", libraryDir, "lib64"} {
			file := filepath.Join(s.dir, pkg, dir, name)
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("shared library %s: in none of the packages %s", name, strings.Join(userland, " "))
}

func (s source) library(name string) ([]byte, error) {
	file, err := s.libraryPath(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

var configFiles = map[string]string{
	"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\n",
	"etc/group":       "root:x:0:\ntty:x:5:\n",
	"etc/shells":      "/bin/sh\n",
	"etc/hostname":    "tiny\n",
	"etc/hosts":       "127.0.0.1 localhost\n",
	"etc/resolv.conf": "",
	"etc/profile":     "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n",
	"etc/os-release":  "ID=tiny\nNAME=tiny\nPRETTY_NAME=\"tiny, made of Debian packages\"\n",
}

// userlandTree is what the virtual machine and the container have in common, with their own process 1.
func (s source) userlandTree(ctx context.Context, init []byte) (*tree, error) {
	t := newTree()
	errs := []error{s.addBusybox(ctx, t), s.addDropbear(t), t.file("sbin/init", 0o755, init)}
	for name, text := range configFiles {
		errs = append(errs, t.file(name, 0o644, []byte(text)))
	}
	errs = append(errs, t.file("etc/shadow", 0o600, []byte("root:*:19000:0:99999:7:::\n")))
	for dir, perm := range map[string]fs.FileMode{
		"dev": 0o755, "proc": 0o755, "sys": 0o755, "run": 0o755, "mnt": 0o755, "root": 0o700, "root/.ssh": 0o700,
		"tmp": 0o777 | fs.ModeSticky, "var/log": 0o755, "etc/dropbear": 0o700,
	} {
		errs = append(errs, t.dir(dir, perm))
	}
	return t, errors.Join(errs...)
}
