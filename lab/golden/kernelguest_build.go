package golden

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hayloft/internal/command"
)

// kernelGuestSize is the size of the root in bytes; blocks nobody wrote take no space.
const kernelGuestSize = 2 << 30

func (b kernelGuest) build(ctx context.Context, g KernelGuest) error {
	root := filepath.Join(b.scratch, "root")
	b.log(fmt.Sprintf("kernel guest: downloading %d packages", len(b.debs)))
	debs, err := b.download(ctx)
	if err != nil {
		return err
	}
	b.log("kernel guest: unpacking")
	if err := b.lay(root); err != nil {
		return err
	}
	for _, deb := range debs {
		if err := b.unpack(ctx, deb, root); err != nil {
			return err
		}
	}
	if err := b.configure(ctx, root); err != nil {
		return err
	}
	b.log("kernel guest: initrd and root file system")
	if err := b.boot(ctx, root, g); err != nil {
		return err
	}
	if err := os.WriteFile(g.Packages, []byte(strings.Join(b.debs, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	// No journal and no checksums: it is never written, but for a snapshot that ends with the guest.
	_, err = b.run.Run(ctx, command.Cmd{Name: mke2fs, Args: []string{"-q", "-F", "-t", "ext4", "-L", "guest", "-m", "0",
		"-O", "^has_journal,^metadata_csum,^resize_inode", "-E", "root_owner=0:0,lazy_itable_init=1", "-d", root, g.Root,
		fmt.Sprintf("%dk", kernelGuestSize>>10)}})
	return err
}

// download fetches all packages; apt checks each against the signed lists.
func (b kernelGuest) download(ctx context.Context) ([]string, error) {
	dir := filepath.Join(b.scratch, "debs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	names := make([]string, len(b.debs))
	for i, deb := range b.debs {
		names[i] = packageName(deb)
	}
	args := append([]string{"-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root", "download"}, names...)
	if _, err := b.run.Run(ctx, command.Cmd{Name: "apt-get", Args: args, Dir: dir}); err != nil {
		return nil, aptError("of the kernel guest", err)
	}
	debs := make([]string, len(names))
	for i, name := range names {
		deb, err := one(filepath.Join(dir, name+"_*.deb"))
		if err != nil {
			return nil, err
		}
		debs[i] = deb
	}
	return debs, nil
}

// lay makes the directories and links that packages expect to find.
func (b kernelGuest) lay(root string) error {
	for _, dir := range kernelGuestDirs {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, target := range kernelGuestLinks {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

// unpack lays out the files of one package, without what only people read.
func (b kernelGuest) unpack(ctx context.Context, deb, root string) error {
	name := filepath.Base(deb)
	files, err := b.run.Run(ctx, command.Cmd{Name: "dpkg-deb", Args: []string{"--fsys-tarfile", deb}})
	if err != nil {
		return fmt.Errorf("package %s: %w", name, err)
	}
	_, err = b.run.Run(ctx, command.Cmd{Name: "tar", Stdin: files, Args: []string{"-C", root, "-xf", "-", "--keep-directory-symlink",
		"--numeric-owner", "--exclude=./usr/share/doc/*", "--exclude=./usr/share/man/*", "--exclude=./usr/share/locale/*",
		"--exclude=./usr/share/bash-completion/*", "--exclude=./usr/lib/debug/*", "--exclude=./boot/System.map*"}})
	if err != nil {
		return fmt.Errorf("package %s: %w", name, err)
	}
	return nil
}

// configure does what the packages' scripts would have done.
func (b kernelGuest) configure(ctx context.Context, root string) error {
	for name, text := range kernelGuestFiles {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	modules, err := one(filepath.Join(root, "lib/modules/*"))
	if err != nil {
		return err
	}
	if err := stripModules(modules); err != nil {
		return err
	}
	for _, step := range [][]string{{"ldconfig"}, {"depmod", "-a", filepath.Base(modules)}} {
		_, err := b.run.Run(ctx, command.Cmd{Name: "chroot", Args: append([]string{root}, step...), Env: []string{"PATH=/usr/sbin:/usr/bin"}})
		if err != nil {
			return err
		}
	}
	return nil
}

// stripModules drops signatures, which cost CPU time at each loading.
func stripModules(dir string) error {
	files, err := moduleFiles(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if bare := stripSignature(data); len(bare) < len(data) {
			if err := os.WriteFile(file, bare, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// boot takes the kernel out of the root and makes the initrd.
func (b kernelGuest) boot(ctx context.Context, root string, g KernelGuest) error {
	kernel, err := one(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	text, err := os.ReadFile(kernel)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(g.Kernel, text, 0o644), os.RemoveAll(filepath.Join(root, "boot"))); err != nil {
		return err
	}
	dir, err := one(filepath.Join(root, "lib/modules/*"))
	if err != nil {
		return err
	}
	modules, err := findModules(dir, kernelGuestModules)
	if err != nil {
		return err
	}
	t := newTree()
	busybox := filepath.Join(root, "usr/bin/busybox")
	data, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	list, err := b.run.Run(ctx, command.Cmd{Name: busybox, Args: []string{"--list"}})
	if err != nil {
		return err
	}
	errs := []error{t.file("bin/busybox", 0o755, data), t.file("init", 0o755, kernelGuestInitrd), addModules(t, filepath.Base(dir), modules),
		t.file("lib/modules/boot", 0o644, []byte(strings.Join(kernelGuestModules, " ")))}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			errs = append(errs, t.link("bin/"+applet, "busybox"))
		}
	}
	for _, dir := range []string{"dev", "proc", "sys", "root"} {
		errs = append(errs, t.dir(dir, 0o755))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return makeInitrd(g.Initrd, t)
}
