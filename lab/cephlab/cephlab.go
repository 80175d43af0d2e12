// Package cephlab is a real Ceph for tests: one monitor, one manager and one OSD that keeps everything in memory, with
// authentication, on one address. Its state is in a directory of the caller's, and its daemons end with the process
// that started them, however that ends. It needs root and the Debian packages ceph-mon, ceph-mgr, ceph-osd, ceph-common.
package cephlab

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hayloft/internal/command"
	"hayloft/internal/undo"
	"hayloft/lab/port"
)

// Config says where.
type Config struct {
	Dir      string // absolute, empty, for state and sockets: a short path
	Address  string // IPv4 that all listen on; "": 127.0.0.1
	Capacity int64  // bytes that the OSD pretends to have; 0: 4 GiB
}

// Cluster runs until Close.
type Cluster struct {
	Conf    string // path of ceph.conf
	Keyring string // of client.admin
	config  Config
	fsid    string
	mon     string // its v1 address
	daemons map[string]*daemon
}

const usable = 5 * time.Minute // it takes less than 10 seconds on a quick machine

// Start returns when images can be written.
func Start(ctx context.Context, config Config) (_ *Cluster, err error) {
	if config.Address == "" {
		config.Address = "127.0.0.1"
	}
	if config.Capacity == 0 {
		config.Capacity = 4 << 30
	}
	ctx, cancel := context.WithTimeout(ctx, usable)
	defer cancel()
	c := &Cluster{Conf: filepath.Join(config.Dir, "ceph.conf"), Keyring: filepath.Join(config.Dir, "admin.keyring"), config: config,
		daemons: map[string]*daemon{}}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run()) }()
	u.Push(c.Close)
	if err := c.prepare(); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{c.startMonitor, c.startManager, c.makeOSD, c.startOSD, c.ready} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	u.Keep()
	return c, nil
}

func (c *Cluster) path(name string) string { return filepath.Join(c.config.Dir, name) }

// prepare writes the configuration and the keys of all.
func (c *Cluster) prepare() error {
	number, err := port.Free(c.config.Address)
	if err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:])
	c.fsid = fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	c.mon = fmt.Sprintf("%s:%d", c.config.Address, number)
	conf := fmt.Sprintf(`[global]
fsid = %s
mon initial members = a
mon host = [v2:%s]
public addr = %s
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
run dir = %[4]s
admin socket =
log file =
log to stderr = false
err to stderr = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon warn on pool no redundancy = false
mon allow pool delete = true
mon allow pool size one = true
mon data = %[4]s/mon
mgr data = %[4]s/mgr
osd data = %[4]s/osd
osd objectstore = memstore
memstore device bytes = %[5]d
mon data avail warn = 1
mon data avail crit = 1
mon osd report timeout = 3600
osd heartbeat grace = 3600
osd client watch timeout = 5
osd fast shutdown = false
osd class dir = %[6]s
mgr initial modules =
mgr stats period = 1
ms bind ipv6 = false
rbd default clone format = 1
`, c.fsid, c.mon, c.config.Address, c.config.Dir, c.config.Capacity, classDir())
	keys := [][2]string{{"mon.", "\tcaps mon = \"allow *\"\n"},
		{"client.admin", "\tcaps mon = \"allow *\"\n\tcaps osd = \"allow *\"\n\tcaps mgr = \"allow *\"\n"},
		{"mgr.x", "\tcaps mon = \"allow profile mgr\"\n\tcaps osd = \"allow *\"\n"},
		{"osd.0", "\tcaps mon = \"allow profile osd\"\n\tcaps mgr = \"allow profile osd\"\n\tcaps osd = \"allow *\"\n"}}
	files := map[string]string{"ceph.conf": conf}
	for i, file := range []string{"mon.keyring", "admin.keyring", "mgr/keyring", "osd/keyring"} {
		entry := fmt.Sprintf("[%s]\n\tkey = %s\n%s", keys[i][0], NewKey(), keys[i][1])
		files[file] += entry
		if i > 0 {
			files["mon.keyring"] += entry
		}
	}
	for _, dir := range []string{"mon", "mgr", "osd"} {
		if err := os.MkdirAll(c.path(dir), 0o700); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// classDir is where the OSD's object classes are.
func classDir() string {
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/rados-classes", "/usr/lib/aarch64-linux-gnu/rados-classes", "/usr/lib64/rados-classes"} {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return "/usr/lib/rados-classes"
}

// NewKey makes a key as Ceph's keyrings have them: type AES, time, length, 16 random bytes, in base64.
func NewKey() string {
	b := make([]byte, 28)
	binary.LittleEndian.PutUint16(b, 1)
	binary.LittleEndian.PutUint32(b[2:], uint32(time.Now().Unix()))
	binary.LittleEndian.PutUint16(b[10:], 16)
	_, _ = rand.Read(b[12:])
	return base64.StdEncoding.EncodeToString(b)
}

// Run runs one of Ceph's programs to its end, as client.admin.
func (c *Cluster) Run(ctx context.Context, name string, args ...string) (string, error) {
	return c.run(ctx, name, append([]string{"-c", c.Conf, "--keyring", c.Keyring}, args...)...)
}

func (c *Cluster) run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := command.Exec{}.Run(ctx, command.Cmd{Name: name, Args: args})
	return strings.TrimSpace(string(out)), err
}

func (c *Cluster) startMonitor(ctx context.Context) error {
	monmap := c.path("monmap")
	if _, err := c.run(ctx, "monmaptool", "--create", "--fsid", c.fsid, "--addv", "a", "[v2:"+c.mon+"]", monmap); err != nil {
		return err
	}
	if _, err := c.run(ctx, "ceph-mon", "-c", c.Conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", c.path("mon.keyring")); err != nil {
		return err
	}
	return c.StartMonitor()
}

// StartMonitor starts the monitor again after Kill.
func (c *Cluster) StartMonitor() error {
	return c.start("mon", "ceph-mon", "-i", "a", "--keyring", c.path("mon.keyring"))
}

func (c *Cluster) startManager(context.Context) error {
	return c.start("mgr", "ceph-mgr", "-i", "x", "--keyring", c.path("mgr/keyring"))
}

func (c *Cluster) makeOSD(ctx context.Context) error {
	if _, err := c.Run(ctx, "ceph", "osd", "new", c.fsid); err != nil {
		return err
	}
	_, err := c.run(ctx, "ceph-osd", "-c", c.Conf, "-i", "0", "--mkfs", "--osd-uuid", c.fsid, "--keyring", c.path("osd/keyring"))
	return err
}

func (c *Cluster) startOSD(context.Context) error { return c.StartOSD() }

// StartOSD starts the OSD again after End; after Kill what it had in memory is lost.
func (c *Cluster) StartOSD() error {
	return c.start("osd", "ceph-osd", "-i", "0", "--keyring", c.path("osd/keyring"))
}

// ready waits until a pool works.
func (c *Cluster) ready(ctx context.Context) error {
	if err := c.CreatePool(ctx, "rbd"); err != nil {
		return err
	}
	for {
		out, err := c.Run(ctx, "ceph", "status", "--format", "json")
		if err == nil && strings.Contains(out, `"available":true`) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no manager: %w", errors.Join(err, ctx.Err()))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// CreatePool makes a pool for images.
func (c *Cluster) CreatePool(ctx context.Context, name string) error {
	if _, err := c.Run(ctx, "ceph", "osd", "pool", "create", name, "8"); err != nil {
		return err
	}
	_, err := c.Run(ctx, "rbd", "pool", "init", name)
	return err
}

// CreateUser makes client.NAME with what Ceph calls the profile rbd for all pools, and gives the path of its keyring.
func (c *Cluster) CreateUser(ctx context.Context, name string) (string, error) {
	path := c.path(name + ".keyring")
	_, err := c.Run(ctx, "ceph", "auth", "get-or-create", "client."+name, "mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd", "-o", path)
	return path, errors.Join(err, os.Chmod(path, 0o600))
}

// Close kills the daemons. The directory stays.
func (c *Cluster) Close() error {
	for _, name := range []string{"mgr", "osd", "mon"} {
		if d := c.daemons[name]; d != nil {
			d.kill()
		}
	}
	return nil
}
