package golden

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"hayloft/internal/command"
)

// aptState is what apt's answers come from.
var aptState = []string{"/var/lib/apt/lists", "/etc/apt"}

// resolved is resolve, answered from the cache as long as apt's lists are the same: apt thinks for more than a second.
func (b kernelGuest) resolved(ctx context.Context, cache string) ([]string, error) {
	state, err := describeState(aptState)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendln(nil, kernelGuestPackages, kernelGuestLeftOut, state))
	file := filepath.Join(cache, "guest-packages-"+hex.EncodeToString(sum[:])[:16])
	var debs []string
	if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &debs) == nil && len(debs) > 0 {
		return debs, nil
	}
	if debs, err = b.resolve(ctx); err != nil {
		return nil, err
	}
	text, err := json.Marshal(debs)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	fresh, err := os.CreateTemp(cache, ".resolving-")
	if err != nil {
		return nil, err
	}
	_, err = fresh.Write(text)
	err = errors.Join(err, fresh.Close())
	if err == nil {
		err = os.Rename(fresh.Name(), file)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(fresh.Name()))
	}
	return debs, nil
}

// describeState is a line a file with its size and time of change.
func describeState(dirs []string) (string, error) {
	var lines strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return ignoreMissing(err)
			}
			info, err := d.Info()
			if err == nil {
				fmt.Fprintln(&lines, name, info.Size(), info.ModTime().UnixNano())
			}
			return ignoreMissing(err)
		})
		if err != nil {
			return "", err
		}
	}
	return lines.String(), nil
}

// ignoreMissing forgives what another process removed meanwhile, and what only root may read.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// resolve lists the files of all packages that belong to the guest, as apt would install them on an empty machine.
func (b kernelGuest) resolve(ctx context.Context) ([]string, error) {
	empty, err := os.MkdirTemp("", "apt-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(empty)
	status := filepath.Join(empty, "status")
	err = errors.Join(os.WriteFile(status, nil, 0o644), os.MkdirAll(filepath.Join(empty, "archives/partial"), 0o755))
	if err != nil {
		return nil, err
	}
	out, err := b.run.Run(ctx, command.Cmd{Name: "apt-get", Args: append([]string{"-qq", "--yes", "--no-install-recommends", "--print-uris",
		"-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + filepath.Join(empty, "archives"), "-o", "Debug::NoLocking=1",
		"install"}, kernelGuestPackages...)})
	if err != nil {
		return nil, aptError(strings.Join(kernelGuestPackages, " "), err)
	}
	var debs []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasSuffix(fields[1], ".deb") && !leftOut(fields[1]) {
			debs = append(debs, fields[1])
		}
	}
	sort.Strings(debs)
	return debs, nil
}
