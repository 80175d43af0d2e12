package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/command"
)

// recordDir holds a file for each run that has not been taken down.
const recordDir = "/run/hayloft-lab"

// record is what must be known to take a run down that was killed.
type record struct {
	Name       string   `json:"name"`
	Kind       string   `json:"kind"`
	Dir        string   `json:"dir"`
	Inode      uint64   `json:"netns_inode"`
	Owner      int      `json:"owner_pid"`
	OwnerStart uint64   `json:"owner_start_ticks"`
	Keep       bool     `json:"keep,omitempty"` // outlives its owner on purpose
	Binary     string   `json:"binary,omitempty"`
	Down       []string `json:"down,omitempty"` // arguments of Binary that take it down in order
}

func (r record) path() string { return filepath.Join(recordDir, r.Name+".json") }

func (r record) write() error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	temp := r.path() + ".new"
	for {
		err := os.WriteFile(temp, append(text, '\n'), 0o600)
		if err == nil {
			return os.Rename(temp, r.path())
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.MkdirAll(recordDir, 0o700); err != nil { // the last run of another program has just removed it
			return err
		}
	}
}

func (r record) remove() error {
	if err := os.Remove(r.path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(recordDir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Stale is a run that has not been taken down.
type Stale struct{ record }

// Runs lists the recorded runs of a kind ("" for all) whose owner is gone: those that were killed, and, with
// kept, also those that were left running on purpose.
func Runs(kind string, kept bool) ([]Stale, error) {
	files, err := filepath.Glob(filepath.Join(recordDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var runs []Stale
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // a run of another program has just ended
		}
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if kind != "" && r.Kind != kind || startOf(r.Owner) == r.OwnerStart && r.OwnerStart != 0 || r.Keep && !kept {
			continue
		}
		runs = append(runs, Stale{r})
	}
	return runs, nil
}

// Name is the name of the run.
func (s Stale) Name() string { return s.record.Name }

// takeDownLimit bounds the orderly way down of a run, which gives its machines two minutes.
const takeDownLimit = 4 * time.Minute

// TakeDown ends the run in order, and by force what does not follow, and returns what was checked then.
func (s Stale) TakeDown(ctx context.Context) ([]Check, error) {
	if _, err := inodeOf((&Namespace{Name: s.record.Name}).path()); err == nil && s.Binary != "" {
		// Whatever it did not do is done by force.
		_ = s.down(ctx)
	}
	if err := s.erase(ctx); err != nil {
		return nil, err
	}
	return leftovers(snapshot{}, s.record)
}

// down runs `hayloft down`.
func (r record) down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, takeDownLimit)
	defer cancel()
	_, err := command.Exec{}.Run(ctx, command.Cmd{Name: r.Binary, Args: r.Down})
	return err
}

// processes are those in the run's namespace and control groups, and its own program's with its directory in
// their command line. This process and its parents are not among them.
func (r record) processes() []process {
	own := lineage()
	var all []process
	for _, p := range processes() {
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
		program, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
		inside := r.Inode != 0 && p.netns == r.Inode || strings.Contains(string(groups), "/"+r.Name+"/")
		ours := r.Binary != "" && strings.TrimSuffix(program, " (deleted)") == r.Binary && p.names(r.Dir)
		if (inside || ours) && !slices.Contains(own, p.pid) {
			all = append(all, p)
		}
	}
	return all
}

// unmount takes away what is mounted below the run's directory in this mount namespace.
func (r record) unmount() error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(mounts) {
		if point == r.Dir || strings.HasPrefix(point, r.Dir+"/") {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	return nil
}
