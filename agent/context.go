package agent

import (
	"context"
	"maps"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/image/contextdisk"
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
	uid, gid := p.user()
	if p.needs().tree {
		return contextdisk.WriteDirectory(p.contextDir(), files, uid, gid)
	}
	if err := contextdisk.Write(ctx, p.contextImage(), files, 0o400); err != nil {
		return err
	}
	if os.Geteuid() != 0 { // then machines run as whom the agent runs as
		return nil
	}
	return os.Chown(p.contextImage(), uid, gid)
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
	return files, nil
}
