package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/dummy"
	"hayloft/disk/localstore/lvm"
	"hayloft/disk/way"
	"hayloft/wire"
)

// storageFlags say where a host keeps disks and caches.
type storageFlags struct {
	lsMad     string
	lsPath    string
	lsMaxMB   int64
	lsLayout  string
	lcMad     string
	cachePath string
	cacheMax  int64 // MB
	copies    int
	perSource int
}

const (
	lsFile  = "file"
	lsLVM   = "lvm"
	lsDummy = "dummy"

	lcEngine = "hayloft"
	lcDummy  = "dummy"
)

func (f *storageFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.lsMad, "ls-mad", lsFile, "LS_MAD, what machines' own disks are made in: file, lvm, or dummy (this host keeps none)")
	flags.StringVar(&f.lsPath, "ls-path", "", "LS_PATH, directory of the local store (none: below the state directory); lvm: GROUP, or GROUP/POOL of a thin pool")
	flags.Int64Var(&f.lsMaxMB, "ls-max", 0, "LS_MAX, most MB that the local store may take; 0: what the file system or volume group has")
	flags.StringVar(&f.lsLayout, "ls-layout", "", "volumes of lvm, thick or thin; none: thin with a pool, else thick")
	flags.StringVar(&f.cachePath, "cache-path", "", "directory of cached images when disks are not files; none: below the state directory")
	flags.Int64Var(&f.cacheMax, "cache-max", 0, "most MB of cached images there; 0: what the file system has")
	flags.StringVar(&f.lcMad, "lc-mad", lcEngine, "LC_MAD, what caches persistent images: "+strings.Join(append([]string{lcEngine}, kernelCacheNames()...), ", ")+" or dummy (nothing does)")
	flags.IntVar(&f.copies, "copies", 0, "whole images copied into volumes at a time; 0: 4")
	flags.IntVar(&f.perSource, "copies-per-repository", 0, "of these from one datastore; 0: 2")
}

// args are the flags again, for an agent that is a process of its own.
func (f *storageFlags) text() map[string]string {
	return map[string]string{"--ls-mad": f.lsMad, "--ls-path": f.lsPath, "--ls-layout": f.lsLayout, "--lc-mad": f.lcMad, "--cache-path": f.cachePath}
}

func (f *storageFlags) numbers() map[string]int64 {
	return map[string]int64{"--ls-max": f.lsMaxMB, "--cache-max": f.cacheMax, "--copies": int64(f.copies), "--copies-per-repository": int64(f.perSource)}
}

// check refuses what does not go together, before anything is opened.
func (f *storageFlags) check() error {
	for name, n := range f.numbers() {
		if n < 0 {
			return fault.Errorf(fault.Invalid, "%s %d", name, n)
		}
	}
	isLVM := f.lsMad == lsLVM
	switch {
	case f.lsMad != lsFile && !isLVM && f.lsMad != lsDummy:
		return fault.Errorf(fault.Invalid, "--ls-mad %q is none of file, lvm, dummy", f.lsMad)
	case isLVM && f.lsPath == "":
		return fault.Errorf(fault.Invalid, "--ls-mad lvm needs --ls-path: the volume group, or GROUP/POOL")
	case f.lsMad == lsDummy && (f.lsPath != "" || f.lsMaxMB != 0):
		return fault.Errorf(fault.Invalid, "--ls-mad dummy keeps nothing: --ls-path and --ls-max are for others")
	case !isLVM && f.lsLayout != "":
		return fault.Errorf(fault.Invalid, "--ls-layout is for --ls-mad lvm")
	case f.lsLayout != "" && f.lsLayout != string(localstore.Thick) && f.lsLayout != string(localstore.Thin):
		return fault.Errorf(fault.Invalid, "--ls-layout %q is neither thick nor thin", f.lsLayout)
	case f.lsMad == lsFile && (f.cachePath != "" || f.cacheMax != 0):
		return fault.Errorf(fault.Invalid, "--cache-path and --cache-max are for disks that are not files: images are cached in --ls-path, within --ls-max")
	}
	if f.lcMad != lcEngine && f.lcMad != lcDummy && kernelCaches[f.lcMad] == nil {
		return fault.Errorf(fault.Invalid, "--lc-mad %q is none of %s, %s, dummy", f.lcMad, lcEngine, strings.Join(kernelCacheNames(), ", "))
	}
	return nil
}

// open completes the configuration of the way, and says what is told to the server.
func (f *storageFlags) open(ctx context.Context, stateDir, instance string, c *way.Config, log *slog.Logger) (*wire.LocalStorage, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	told := &wire.LocalStorage{LsMad: f.lsMad, LsPath: f.lsPath, LsMax: f.lsMaxMB << 20, LcMad: f.lcMad}
	c.Copies, c.CopiesPerRepository = f.copies, f.perSource
	c.Root, c.Max = filepath.Join(stateDir, "store"), f.cacheMax<<20
	switch f.lsMad {
	case lsFile:
		c.Max = told.LsMax
		if f.lsPath != "" {
			c.Root = f.lsPath
		}
		told.LsPath = c.Root
	case lsLVM:
		store, err := lvm.Open(ctx, lvm.Config{Path: f.lsPath, Layout: localstore.Layout(f.lsLayout), Max: told.LsMax, Instance: instance, Log: log})
		if err != nil {
			return nil, err
		}
		c.Volumes = store
	case lsDummy:
		c.Volumes = dummy.Store{}
	}
	if f.lsMad != lsFile && f.cachePath != "" {
		c.Root = f.cachePath
	}
	return told, f.openCache(ctx, instance, c, told, log)
}

func (f *storageFlags) openCache(ctx context.Context, instance string, c *way.Config, told *wire.LocalStorage, log *slog.Logger) error {
	switch f.lcMad {
	case lcEngine:
		return nil
	case lcDummy:
		c.Kernel = noCache{}
		told.LcModes = []string{string(cache.None)}
	default:
		driver, err := kernelCaches[f.lcMad](kernelcache.Config{Instance: instance, Log: log})
		if err == nil {
			err = driver.Check(ctx)
		}
		if err != nil {
			return err
		}
		c.Kernel = driver
		for _, m := range driver.Modes() {
			told.LcModes = append(told.LcModes, string(m))
		}
	}
	c.KernelName = f.lcMad
	return nil
}

// noCache is LC_MAD dummy.
type noCache struct{}

var _ kernelcache.Driver = noCache{}

func (noCache) no() error {
	return fault.Errorf(fault.Unsupported, "this host caches nothing (LC_MAD dummy)")
}
func (noCache) Modes() []cache.Mode                              { return nil }
func (noCache) Check(context.Context) error                      { return nil }
func (noCache) List(context.Context) ([]string, error)           { return nil, nil }
func (n noCache) Detach(context.Context, kernelcache.Spec) error { return n.no() }

func (n noCache) Attach(context.Context, kernelcache.Spec) (kernelcache.Status, error) {
	return kernelcache.Status{}, n.no()
}

func (n noCache) Status(context.Context, kernelcache.Spec) (kernelcache.Status, error) {
	return kernelcache.Status{}, n.no()
}

func (n noCache) Flush(context.Context, kernelcache.Spec, func(done, total int64)) error {
	return n.no()
}
