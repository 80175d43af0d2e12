package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"

	"hayloft/image"
	"hayloft/internal/command"
	"hayloft/lab/fleet"
	"hayloft/lab/golden"
	"hayloft/lab/httplab"
)

// bench measures variants of starting a machine.
type bench struct {
	options options
	dir     string
}

// subject is one image, in a directory that is served.
type subject struct {
	name     string
	dir      string // served; holds image.raw, its index, and later its profile
	memoryMB int
	index    *image.Index
}

const objectName = "image.raw"

func (s *subject) path() string    { return filepath.Join(s.dir, objectName) }
func (s *subject) profile() string { return filepath.Join(s.dir, image.ProfileName(objectName)) }

// subject makes the image and its index.
func (b *bench) subject(ctx context.Context, name string) (*subject, error) {
	s := &subject{name: name, dir: filepath.Join(b.dir, "served-"+name), memoryMB: 128}
	log := func(line string) { say("%s", line) }
	var from string
	var padding int64
	switch name {
	case "tiny":
		set, err := golden.Build(ctx, golden.Options{Log: log})
		if err != nil {
			return nil, err
		}
		from, padding = set.Disk, b.options.padding<<20
	case "debian":
		var err error
		if from, err = golden.BuildDebian(ctx, golden.Options{Log: log}); err != nil {
			return nil, err
		}
		s.memoryMB = 384
	default:
		return nil, fmt.Errorf("no such image: tiny and debian are there")
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := (command.Exec{}).Run(ctx, command.Cmd{Name: "cp", Args: []string{"--sparse=always", "--reflink=auto", from, s.path()}}); err != nil {
		return nil, err
	}
	if err := pad(s.path(), padding); err != nil {
		return nil, err
	}
	file, err := os.Open(s.path())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	say("index of %s, %.0f MB", name, mb(info.Size()))
	if s.index, _, err = image.Scan(ctx, nil, file, info.Size(), nil); err != nil {
		return nil, err
	}
	return s, os.WriteFile(filepath.Join(s.dir, image.IndexName(objectName)), s.index.Marshal(), 0o644)
}

// pad appends data that no compression makes smaller, the same each time.
func pad(path string, bytes int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{1})
	_, err = io.CopyBuffer(struct{ io.Writer }{file}, io.LimitReader(noise, bytes), make([]byte, 1<<20))
	return errors.Join(err, file.Close())
}

// serve starts the web server on a line of the rate, reachable here and, when site is not nil, in its namespace.
func (b *bench) serve(s *subject, site *fleet.Site) (*httplab.Server, error) {
	c := httplab.Config{Dir: s.dir, Rate: int64(b.options.rate * 1e6 / 8), CertDir: b.dir}
	if site != nil {
		c.Also = func(address string) (l net.Listener, err error) {
			err = errors.Join(site.Namespace.Inside(func() error {
				l, err = net.Listen("tcp", address)
				return err
			}))
			return l, err
		}
	}
	return httplab.Start(c)
}
