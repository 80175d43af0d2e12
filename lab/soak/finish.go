package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/blockd"
)

// finish compares everything a last time, with no disturbance, and takes it away.
func (s *soak) finish() error {
	s.say(s.line())
	for _, v := range s.disks {
		if err := v.last(); err != nil {
			return err
		}
	}
	for i, g := range s.images {
		if err := s.lastOf(g, i); err != nil {
			return fmt.Errorf("base of %s, capacity %d: %w", g.image.Name, g.capacity, err)
		}
	}
	status, err := s.client.Status(s.ctx)
	if err != nil {
		return err
	}
	if len(status.Exports) != 0 || len(status.Bases) != 0 {
		return fmt.Errorf("left in the data path: %+v", status)
	}
	var errs []error
	for _, dir := range []string{"machine", "base", "state/exports", "state/bases"} {
		left, err := os.ReadDir(s.path(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range left {
			if dir == "machine" && e.IsDir() && os.Remove(s.path(dir, e.Name())) == nil {
				continue // the machine's own, empty
			}
			errs = append(errs, fmt.Errorf("left in %s: %s", dir, e.Name()))
		}
	}
	return errors.Join(errs...)
}

// lastOf reads all of a base, and has it whole where it may be.
func (s *soak) lastOf(g *golden, number int) error {
	if err := os.MkdirAll(s.baseDir(g), 0o755); err != nil {
		return err
	}
	e := s.export(s.random(5+uint64(number)), fmt.Sprintf("last.%d", number))
	e.Kind, e.Base = blockd.NBD, s.spec(g)
	if err := s.client.Export(s.ctx, e); err != nil {
		return err
	}
	c, err := open(s.ctx, e)
	if err != nil {
		return err
	}
	defer c.Close()
	p := make([]byte, len(g.bytes))
	if err := c.Read(s.ctx, p, 0); err != nil {
		return err
	}
	if err := differ(p, g.bytes, 0); err != nil {
		return err
	}
	if g.capacity == 0 {
		if err := s.client.Preload(s.ctx, blockd.Preload{Digest: g.image.Digest, All: true}, nil); err != nil {
			return err
		}
		b, err := s.client.Base(s.ctx, *e.Base)
		// The mark follows when all is durable.
		for end := time.Now().Add(patience); err == nil && !b.Complete && time.Now().Before(end); b, err = s.client.Base(s.ctx, *e.Base) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil || !b.Complete {
			return fmt.Errorf("not complete after all was brought: %+v, %w", b, err)
		}
		data, err := os.ReadFile(filepath.Join(s.baseDir(g), "data"))
		if err == nil {
			err = differ(data, g.bytes, 0)
		}
		if err != nil {
			return fmt.Errorf("file of the complete base: %w", err)
		}
	}
	if b, err := os.ReadFile(s.path("repository", g.image.Source)); err != nil || !bytes.Equal(b, g.bytes) {
		return fmt.Errorf("the image in the repository is not what it was, %w", err)
	}
	if err := s.unexport(e, e.Name); err != nil {
		return err
	}
	return errors.Join(s.bounded(g), s.drop(g))
}

// allocated is the space that a file takes up, in bytes.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Blocks * 512, err
}

const endLimit = 2 * time.Minute

// clearAway ends what is left of a run that failed, and says what is left of one that did not: the process ends by
// itself when it exports nothing and its keeper is gone.
func (s *soak) clearAway(failed bool) error {
	var errs []error
	if failed {
		if status, err := askOnce(s.path("state")); err == nil {
			s.unexportAll(status)
		}
	}
	s.client.Close()
	for end := time.Now().Add(endLimit); len(processesOf(s.dir)) > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	left := s.leftovers()
	if !failed {
		errs = append(errs, left...)
	}
	errs = append(errs, s.complaints()...)
	errs = append(errs, s.force())
	return errors.Join(errs...)
}

func askOnce(stateDir string) (blockd.Status, error) {
	c := blockd.NewClient(stateDir)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	return c.Status(ctx)
}

func (s *soak) unexportAll(status blockd.Status) {
	c := blockd.NewClient(s.path("state"))
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	var group sync.WaitGroup
	for _, e := range status.Exports {
		group.Go(func() { _ = c.Unexport(ctx, e.Name) })
	}
	group.Wait()
}

// leftovers are processes, mounts and loop devices that have to do with the run's directory.
func (s *soak) leftovers() (all []error) {
	for _, pid := range processesOf(s.dir) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		all = append(all, fmt.Errorf("process left: %d: %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	for _, m := range s.mounts() {
		all = append(all, fmt.Errorf("mount left: %s", m))
	}
	for _, d := range s.loops() {
		all = append(all, fmt.Errorf("loop device left: %s", d))
	}
	if exists(s.path("state", "blockd.sock")) {
		all = append(all, fmt.Errorf("socket of the process left"))
	}
	return all
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (s *soak) mounts() (points []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], s.dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

func (s *soak) loops() (devices []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), s.dir+"/") {
			devices = append(devices, strings.Split(f, "/")[3])
		}
	}
	return devices
}

// force ends processes and mounts of a run that failed.
func (s *soak) force() error {
	for _, pid := range processesOf(s.dir) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return abandon(s.path("state"))
}

// complaints are what the process said and never should.
func (s *soak) complaints() (all []error) {
	for _, name := range []string{blockd.LogFile, blockd.LogFile + ".1"} {
		text, err := os.ReadFile(s.path("state", name))
		if err != nil {
			continue
		}
		for _, word := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE", "record left out"} {
			if at := bytes.Index(text, []byte(word)); at >= 0 {
				all = append(all, fmt.Errorf("the data path's log: %s", text[at:min(at+6000, len(text))]))
			}
		}
	}
	return all
}
