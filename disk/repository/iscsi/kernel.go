package iscsi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/internal/undo"
)

const (
	sysSessions = "/sys/class/iscsi_session"
	sysBlock    = "/sys/class/block"
	// answerless is how many seconds the kernel waits for a target that went away before requests fail.
	answerless = "30"
)

// attach logs this host's kernel in to a target for a persistent image that is owned, unless it is, and gives the device to
// uid and gid. One target there is for each possession, also after a restart of the host. When the server has forgotten
// it, writes that it had in memory may be lost: the device is made anew then, not taken up again.
func (r *Repository) attach(ctx context.Context, v volume, uid, gid int) (path string, err error) {
	e := export{name: r.name(place{kind: attached, volume: fingerprint(v.UUID), generation: v.mark.generation, nonce: "0"})}
	if err := r.fence(ctx, v, func(p place) bool { return r.name(p) == e.name }); err != nil {
		return "", err
	}
	session, err := sessionOf(e.name)
	if err != nil {
		return "", err
	}
	there, err := r.keeps(ctx, e.name, session != "")
	if err != nil {
		return "", err
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run()) }()
	if !there {
		if session != "" {
			if err := r.detach(ctx, v); err != nil {
				return "", err
			}
			session = ""
		}
		if e, err = r.offer(ctx, v, e); err != nil {
			return "", err
		}
		u.Push(func() error { return r.drop(ctx, e) })
	}
	if now, err := r.again(ctx, v); err != nil {
		return "", err
	} else if err := possessed(now, v.mark.owner, v.mark.generation); err != nil {
		return "", err
	}
	if session == "" {
		u.Push(func() error { return r.logout(context.WithoutCancel(ctx), e.name) })
		if err := r.login(ctx, e.name); err != nil {
			return "", err
		}
	}
	if path, err = r.appeared(ctx, e.name, v.Size); err != nil {
		return "", err
	}
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, 0o600)); err != nil {
		return "", err
	}
	u.Keep()
	return path, nil
}

// keeps says whether the server has a target that this kernel is logged in to. One that it is not is removed: nobody knows
// whether it is complete.
func (r *Repository) keeps(ctx context.Context, name string, loggedIn bool) (bool, error) {
	all, err := r.targets(ctx)
	if err != nil {
		return false, err
	}
	for _, t := range all {
		if t.name == name {
			if loggedIn {
				return true, nil
			}
			return false, r.dropTarget(ctx, t.id)
		}
	}
	return false, nil
}

// iscsiadm runs open-iscsi's tool on this host.
func (r *Repository) iscsiadm(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*r.limit) // it has limits of its own
	defer cancel()
	cmd := command.Cmd{Name: "iscsiadm", Args: args, Env: []string{"LC_ALL=C"}, Dir: "/"}
	_, err := r.local.Run(ctx, cmd)
	var e *command.Error
	if !errors.As(err, &e) {
		return r.late(ctx, cmd, err)
	}
	class := fault.Unavailable
	switch e.Status { // iscsiadm(8), "Exit Status"
	case 15: // session exists
		return nil
	case 21: // no objects found
		class = fault.NotFound
	case 24: // login failed due to authorization
		class = fault.Permission
	case 10, 28: // in use
		class = fault.Busy
	}
	return fault.As(class, err)
}

func (r *Repository) node(name string, args ...string) []string {
	return append([]string{"-m", "node", "-T", name, "-p", r.portal}, args...)
}

// login has the kernel log in, without asking the portal what it has. CHAP's account is that of iscsid.conf.
func (r *Repository) login(ctx context.Context, name string) error {
	if err := r.iscsiadm(ctx, r.node(name, "-o", "new")...); err != nil {
		return err
	}
	for option, value := range map[string]string{"node.startup": "manual", "node.session.timeo.replacement_timeout": answerless, "node.session.initial_login_retry_max": "2"} {
		if err := r.iscsiadm(ctx, r.node(name, "-o", "update", "-n", option, "-v", value)...); err != nil {
			return err
		}
	}
	return r.iscsiadm(ctx, r.node(name, "--login")...)
}

// logout ends a session, if there is one, and forgets the target.
func (r *Repository) logout(ctx context.Context, name string) error {
	err := r.iscsiadm(ctx, r.node(name, "--logout")...)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	if err != nil {
		return err
	}
	if err = r.iscsiadm(ctx, r.node(name, "-o", "delete")...); fault.Is(err, fault.NotFound) {
		err = nil
	}
	return err
}

// sessionOf finds the kernel's session with a target, "" for none.
func sessionOf(name string) (string, error) {
	entries, err := os.ReadDir(sysSessions)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		text, _ := os.ReadFile(filepath.Join(sysSessions, e.Name(), "targetname"))
		if strings.TrimSpace(string(text)) == name {
			return filepath.Join(sysSessions, e.Name()), nil
		}
	}
	return "", nil
}

// deviceOf finds the device of a session, "" while there is none.
func deviceOf(session string) string {
	found, _ := filepath.Glob(filepath.Join(session, "device", "target*", "*:"+strconv.Itoa(unitNumber), "block", "*"))
	if len(found) != 1 {
		return ""
	}
	return filepath.Base(found[0])
}

// appeared waits for the device of a target, and sees whether it is what was asked for.
func (r *Repository) appeared(ctx context.Context, name string, size int64) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		session, err := sessionOf(name)
		if err != nil {
			return "", err
		}
		if device := deviceOf(session); session != "" && device != "" {
			path := filepath.Join("/dev", device)
			if opens(path) {
				return path, sized(device, size)
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return "", fault.Errorf(fault.Unavailable, "the kernel is logged in to %s, but shows no device: %w", name, ctx.Err())
		}
	}
}

// opens says whether a device is there, and not still the one before it or offline.
func opens(path string) bool {
	fi, err := os.Stat(path)
	if err != nil || fi.Mode()&os.ModeDevice == 0 {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func sized(device string, size int64) error {
	text, err := os.ReadFile(filepath.Join(sysBlock, device, "size"))
	if err != nil {
		return err
	}
	if sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil || sectors*512 != size {
		return fault.Errorf(fault.Corrupt, "device %s has %s sectors, the volume %d bytes", device, strings.TrimSpace(string(text)), size)
	}
	return nil
}

// detach is the opposite of attach: fault.Busy when the device is in use.
func (r *Repository) detach(ctx context.Context, v volume) error {
	targets, err := r.targets(ctx)
	if err != nil {
		return err
	}
	sessions, _ := filepath.Glob(filepath.Join(sysSessions, "*", "targetname"))
	for _, file := range sessions {
		text, _ := os.ReadFile(file)
		name := strings.TrimSpace(string(text))
		if p, ok := r.parse(name); !ok || p.volume != fingerprint(v.UUID) || p.kind != attached {
			continue
		}
		if device := deviceOf(filepath.Dir(file)); device != "" {
			there := slices.ContainsFunc(targets, func(t target) bool { return t.name == name })
			if err := released(device); err != nil && (there || fault.Is(err, fault.Busy)) {
				return err // else what was not written before the server forgot the target never will be
			}
		}
		if err := r.logout(ctx, name); err != nil {
			return err
		}
	}
	return r.dropAll(ctx, v, func(p place, t target) bool { return p.kind == attached && t.sessions == 0 })
}

// released is fault.Busy when a device is in use, and writes what the kernel has of it in memory.
func released(device string) error {
	f, err := os.OpenFile(filepath.Join("/dev", device), os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fault.Errorf(fault.Busy, "device %s is in use", device)
	}
	if err != nil { // of a target that is gone
		return nil
	}
	defer f.Close()
	return f.Sync()
}
