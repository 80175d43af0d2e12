package golden

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

const kernelMeta = "linux-image-cloud-amd64"

// userland is what both images hold besides the kernel: busybox, dropbear and dropbear's libraries.
var userland = []string{"busybox-static", "dropbear-bin", "libtomcrypt1", "libtommath1", "libgmp10", "zlib1g",
	"libcrypt1", "libc6"}

// packages is a set of Debian packages with the versions that apt would download now.
type packages struct {
	run      command.Runner
	Kernel   string            // the package behind linux-image-cloud-amd64
	Versions map[string]string // name to version
}

// resolve asks apt, without downloading anything, which packages the images are made from.
func resolve(ctx context.Context, run command.Runner) (packages, error) {
	p := packages{run: run, Versions: map[string]string{}}
	out, err := run.Run(ctx, command.Cmd{Name: "apt-cache", Args: []string{"depends", "--important", kernelMeta}})
	if err != nil {
		return p, aptError(kernelMeta, err)
	}
	p.Kernel = kernelPackage(string(out))
	if p.Kernel == "" {
		return p, aptError(kernelMeta, fmt.Errorf("it depends on no linux-image-*-cloud-amd64 package"))
	}
	out, err = run.Run(ctx, command.Cmd{Name: "apt-get", Args: append([]string{"download", "--print-uris"}, p.names()...)})
	if err != nil {
		return p, aptError(strings.Join(p.names(), " "), err)
	}
	p.Versions = parseURIs(string(out))
	for _, name := range p.names() {
		if p.Versions[name] == "" {
			return p, aptError(name, fmt.Errorf("no candidate to download"))
		}
	}
	return p, nil
}

func aptError(name string, err error) error {
	return fault.Errorf(fault.Unavailable, "Debian package %s: %w (are the package lists there? apt-get update)", name, err)
}

func (p packages) names() []string { return append([]string{p.Kernel}, userland...) }

// kernelPackage finds the real kernel in the output of apt-cache depends.
func kernelPackage(depends string) string {
	for line := range strings.Lines(depends) {
		_, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") && strings.HasSuffix(name, "-cloud-amd64") {
			return name
		}
	}
	return ""
}

// parseURIs reads the lines of apt-get download --print-uris: 'URL' name_version_arch.deb size hash.
func parseURIs(text string) map[string]string {
	versions := map[string]string{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		parts := strings.Split(strings.TrimSuffix(fields[1], ".deb"), "_")
		if len(parts) == 3 {
			versions[parts[0]] = strings.ReplaceAll(parts[1], "%3a", ":")
		}
	}
	return versions
}

// describe is one line a package, sorted: part of the key of a set.
func (p packages) describe() string {
	var lines []string
	for name, version := range p.Versions {
		lines = append(lines, name+" "+version+"\n")
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

// unpack downloads all packages and lays out their files below dir, one directory a package. No script of a
// package runs.
func (p packages) unpack(ctx context.Context, dir string) error {
	download := filepath.Join(dir, "download")
	if err := os.Mkdir(download, 0o755); err != nil {
		return err
	}
	// apt checks the hash of each file against the signed package lists.
	if _, err := p.run.Run(ctx, command.Cmd{Name: "apt-get", Args: append([]string{"download"}, p.names()...), Dir: download}); err != nil {
		return aptError(strings.Join(p.names(), " "), err)
	}
	for _, name := range p.names() {
		debs, err := filepath.Glob(filepath.Join(download, name+"_*.deb"))
		if err != nil || len(debs) != 1 {
			return fmt.Errorf("package %s: %d files downloaded, want 1", name, len(debs))
		}
		if _, err := p.run.Run(ctx, command.Cmd{Name: "dpkg-deb", Args: []string{"-x", debs[0], filepath.Join(dir, name)}}); err != nil {
			return fmt.Errorf("package %s: %w", name, err)
		}
	}
	return os.RemoveAll(download)
}
