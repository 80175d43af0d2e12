package nfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/lockfile"
)

const (
	mountLimit   = 90 * time.Second // mount.nfs4 with its patience
	unmountLimit = 10 * time.Second
)

// mount is the use of one export by one repository. Beside its directory lie three files:
//
//	HASH.use     locked, shared, by all who use the mount, and exclusively by who unmounts it
//	HASH.change  locked by who mounts or unmounts
//	HASH.handed  has the time when a path was last given away, to somebody who may not have opened it yet
type mount struct {
	source  string
	options []string
	dir     string
	runner  command.Runner
	idle    time.Duration
	grace   time.Duration

	turn chan struct{} // held by who mounts or unmounts, in this process
	// the rest is changed with turn and mu held
	mu     sync.Mutex
	use    *os.File // nil: not in use
	device uint64
	last   time.Time // of use
	timer  *time.Timer
}

func newMount(c Config, source string, options []string) *mount {
	sum := sha256.Sum256([]byte(source + "\x00" + strings.Join(options, ",")))
	return &mount{source: source, options: options, dir: filepath.Join(c.Dir, hex.EncodeToString(sum[:8])), runner: c.Runner, idle: c.Idle, grace: c.Grace, turn: make(chan struct{}, 1)}
}

// Ready implements path.Mount.
func (m *mount) Ready(ctx context.Context) error {
	if m.mounted() {
		return nil
	}
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return fault.Errorf(fault.ClassOf(ctx.Err()), "is being mounted: %w", ctx.Err())
	}
	if m.mounted() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	return m.begin(ctx)
}

// mounted reports whether all is as it should be, and notes the use.
func (m *mount) mounted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = time.Now()
	if m.use == nil {
		return false
	}
	device, err := m.find()
	return err == nil && device == m.device
}

// begin takes part in the use of the mount, and makes it where it is not. turn is held.
func (m *mount) begin(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(m.dir), 0o711); err != nil {
		return fmt.Errorf("directory for mounts: %w", err)
	}
	use := m.use
	if use == nil {
		var err error
		if use, err = os.OpenFile(m.dir+".use", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return err
		}
		if err := shared(ctx, use); err != nil {
			use.Close()
			return fault.Errorf(fault.Unavailable, "is being unmounted by another process: %w", err)
		}
	}
	device, err := m.ensure(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && m.use == nil {
		_ = release(use)
		return err
	}
	m.use, m.device, m.last = use, device, time.Now()
	if m.timer == nil {
		m.timer = time.AfterFunc(m.idle, m.rest)
	}
	return err
}

// ensure gives the device of the mount, which is made when there is none.
func (m *mount) ensure(ctx context.Context) (uint64, error) {
	change, err := os.OpenFile(m.dir+".change", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer release(change)
	if err := lockfile.Take(ctx, change, mountLimit); err != nil {
		return 0, fault.Errorf(fault.Unavailable, "is being mounted by another process: %w", err)
	}
	device, err := m.find()
	if !fault.Is(err, fault.NotFound) {
		return device, err
	}
	// Mkdir, unlike Stat, asks nothing of a server that is mounted there.
	if err := os.Mkdir(m.dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return 0, fmt.Errorf("directory for the mount: %w", err)
	}
	if err := m.make(ctx); err != nil {
		return 0, errors.Join(err, notEmpty(os.Remove(m.dir)))
	}
	return m.find()
}

// notEmpty is an error of removing a directory that is not what was expected; it is there, or a mount is.
func notEmpty(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// shared waits for those who unmount.
func shared(ctx context.Context, file *os.File) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release gives a lock back. Closing alone may do that later: a process that is just being started has the file too, until
// it runs its program.
func release(file *os.File) error {
	return errors.Join(unix.Flock(int(file.Fd()), unix.LOCK_UN), file.Close())
}

func (m *mount) make(ctx context.Context) error {
	_, err := m.runner.Run(ctx, command.Cmd{Name: "mount.nfs4", Args: []string{m.source, m.dir, "-o", strings.Join(m.options, ",")}})
	var failed *command.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.Errorf(fault.ClassOf(ctx.Err()), "mount: %w", ctx.Err())
	case !errors.As(err, &failed):
		return fault.Errorf(fault.ClassOf(err), "mount: %w", err)
	}
	class := fault.Unavailable
	for text, c := range map[string]fault.Class{"access denied": fault.Permission, "Operation not permitted": fault.Permission, "Permission denied": fault.Permission,
		"No such device": fault.Unsupported, "Protocol not supported": fault.Unsupported, "incorrect mount option": fault.Unsupported, "unknown filesystem": fault.Unsupported} {
		if strings.Contains(failed.Stderr, text) {
			class = c
		}
	}
	return fault.Errorf(class, "mount: %w", err)
}

// find gives the device of the mount: fault.NotFound when there is none, fault.WrongState when there is one of something
// else, which is left alone.
func (m *mount) find() (uint64, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	return parseMountinfo(string(text), m.dir, m.source)
}

// parseMountinfo looks for what is mounted on dir, the topmost (proc(5), /proc/PID/mountinfo).
func parseMountinfo(text, dir, source string) (uint64, error) {
	found := fault.Errorf(fault.NotFound, "is not mounted")
	var device uint64
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 2 || unescape(left[4]) != dir {
			continue
		}
		var major, minor uint32
		_, err := fmt.Sscanf(left[2], "%d:%d", &major, &minor)
		switch is := unescape(right[1]); {
		case err != nil:
			found = fault.Errorf(fault.WrongState, "device %q of the mount on %s", left[2], dir)
		case right[0] != "nfs4" || is != source:
			found = fault.Errorf(fault.WrongState, "%s of type %s is mounted on %s", is, right[0], dir)
		default:
			device, found = unix.Mkdev(major, minor), nil
		}
	}
	return device, found
}

// unescape takes back what the kernel does to blanks and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		var c byte
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := fmt.Sscanf(s[i+1:i+4], "%03o", &c); n == 1 && err == nil {
				b.WriteByte(c)
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Check implements path.Mount.
func (m *mount) Check(root *os.Root) error {
	var st unix.Stat_t
	dir, err := root.Open(".")
	if err != nil {
		return fault.As(fault.Unavailable, err)
	}
	defer dir.Close()
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fault.As(fault.Unavailable, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if st.Dev != m.device {
		return fault.Errorf(fault.Unavailable, "is not mounted any more")
	}
	return nil
}

// Handed implements path.Mount.
func (m *mount) Handed() {
	file, err := os.OpenFile(m.dir+".handed", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return // the mount stays until the next one who looks: nothing is lost
	}
	defer file.Close()
	now := time.Now()
	_ = os.Chtimes(file.Name(), now, now)
}
