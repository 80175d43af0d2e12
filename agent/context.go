package agent

import (
	"context"
	"maps"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/disk"
)

func (p *pass) hasContext() bool {
	return len(p.want.Machine.Context) > 0 || len(p.want.Machine.ContextImages) > 0
}

func (p *pass) contextImage() string { return filepath.Join(p.dir(), "context.img") }
func (p *pass) contextDir() string   { return filepath.Join(p.dir(), "context") }

// writeContext makes the context disk or directory anew: the context may have changed since the last start.
// It holds secrets, so only the machine's own user can read it.
func (p *pass) writeContext(ctx context.Context, prepared disk.Prepared) error {
	if !p.hasContext() || !p.needs().context && !p.needs().tree {
		return nil
	}
	files, err := p.contextFiles(prepared)
	if err != nil {
		return err
	}
	if p.needs().tree {
		return p.writeContextDir(files)
	}
	if p.cfg.ContextDisk == nil {
		return fault.Errorf(fault.Unsupported, "machine %d: this host makes no context disks", p.vm())
	}
	temporary := p.contextImage() + ".new"
	defer os.Remove(temporary)
	if err := p.cfg.ContextDisk(ctx, temporary, files); err != nil {
		return err
	}
	if err := os.Chmod(temporary, 0o400); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		uid, gid := p.user()
		if err := os.Chown(temporary, uid, gid); err != nil {
			return err
		}
	}
	return os.Rename(temporary, p.contextImage())
}

func (p *pass) contextFiles(prepared disk.Prepared) (map[string][]byte, error) {
	files := maps.Clone(p.want.Machine.Context)
	if files == nil {
		files = make(map[string][]byte)
	}
	images := p.want.Machine.ContextImages
	first := len(prepared.Files) - len(images)
	if first < 0 {
		return nil, fault.Errorf(fault.Internal, "machine %d: %d files were prepared and %d are in the context", p.vm(), len(prepared.Files), len(images))
	}
	for i, named := range images {
		content, err := os.ReadFile(prepared.Files[first+i])
		if err != nil {
			return nil, err
		}
		files[named.Name] = content
	}
	for name := range files {
		if name == "" || name == "." || name == ".." || filepath.Base(name) != name {
			return nil, fault.Errorf(fault.Invalid, "machine %d: %q cannot be the name of a file in the context", p.vm(), name)
		}
	}
	return files, nil
}

// writeContextDir is only read by root, which is who the container's user 0 is or is mapped by the driver.
func (p *pass) writeContextDir(files map[string][]byte) error {
	if err := os.RemoveAll(p.contextDir()); err != nil {
		return err
	}
	if err := os.Mkdir(p.contextDir(), 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(p.contextDir(), name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
