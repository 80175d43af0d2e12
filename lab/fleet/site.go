// Package fleet runs a Hayloft of its own on this machine, for the demo, benchmarks and tests: in a network
// namespace and directories of its own, with machines made from the golden images, watched until each has
// answered over SSH, and taken down so that it can be shown that nothing is left. What a killed run left behind
// is found again by its record and taken down by the ids in it.
package fleet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor/cgroup"
	"hayloft/internal/undo"
)

// Site is the place of one run: a name that marks all that is its own, a network namespace, a directory.
type Site struct {
	Name      string // of the namespace, and the instance of bridges, rules and control groups
	Dir       string // its own, 0711, removed with it
	Namespace *Namespace
	Prober    *Prober

	before snapshot
	record record
}

// NewSite makes a place for a run of the kind, a short word; the rest of its name is random. dir is where its
// directory is made; "" is the system's directory for temporary files.
func NewSite(kind, dir string) (*Site, error) {
	if os.Geteuid() != 0 {
		return nil, fault.Errorf(fault.Permission, "network namespaces need root")
	}
	s := &Site{Name: "hayloft-" + kind + "-" + strings.ToLower(rand.Text()[:6])}
	var err error
	if s.before, err = look(); err != nil {
		return nil, err
	}
	var made undo.Stack
	defer made.Run()
	if dir == "" {
		dir = os.TempDir()
	}
	s.Dir = filepath.Join(dir, s.Name)
	s.record = record{Name: s.Name, Kind: kind, Dir: s.Dir, Owner: os.Getpid(), OwnerStart: startOf(os.Getpid())}
	if err := s.record.write(); err != nil {
		return nil, err
	}
	made.Push(s.record.remove)
	if err := os.Mkdir(s.Dir, 0o711); err != nil {
		return nil, err
	}
	made.Push(func() error { return os.RemoveAll(s.Dir) })
	if s.Namespace, err = newNamespace(s.Name); err != nil {
		return nil, err
	}
	made.Push(s.Namespace.remove)
	s.record.Inode = s.Namespace.Inode
	if err := s.record.write(); err != nil {
		return nil, err
	}
	if s.Prober, err = newProber(s.Namespace); err != nil {
		return nil, err
	}
	made.Keep()
	return s, nil
}

// closeLimit bounds taking by force what has not gone by itself.
const closeLimit = 3 * time.Minute

// Close takes everything of the site away, by force what is still there: processes in the namespace or with
// the site's directory in their command line, control groups, mounts, files.
func (s *Site) Close(ctx context.Context) error {
	s.Prober.Close()
	return s.record.erase(ctx)
}

// erase takes down by force whatever the record names.
func (r record) erase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	var errs []error
	for ctx.Err() == nil {
		left := r.processes()
		if len(left) == 0 {
			break
		}
		for _, p := range left {
			p.kill()
		}
		select {
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("processes do not end: %v", left))
		case <-time.After(20 * time.Millisecond):
		}
	}
	errs = append(errs, r.eraseGroups(ctx), r.unmount(), (&Namespace{Name: r.Name}).remove(), os.RemoveAll(r.Dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	return r.remove()
}

func (r record) eraseGroups(ctx context.Context) error {
	tree, err := cgroup.New(r.Name)
	if err != nil || !tree.Available() {
		return err
	}
	names, err := tree.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		group, err := tree.Open(name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err == nil {
			err = errors.Join(group.Kill(), group.Remove(ctx))
		}
		if err != nil {
			return err
		}
	}
	return tree.Remove()
}
