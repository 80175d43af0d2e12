package iscsi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/qemublock"
	"hayloft/disk/repository/secret"
	"hayloft/internal/undo"
)

// kind says what a target is for.
type kind string

const (
	reading  kind = "r"
	writing  kind = "p" // an unfinished object
	owning   kind = "o" // a persistent image, by QEMU
	attached kind = "k" // a persistent image, by the kernel of its owner's host
)

// place is what the name of a target says.
type place struct {
	kind       kind
	volume     string // fingerprint of the volume's UUID
	generation uint64 // of the owner
	made       int64  // Unix seconds on the server
	nonce      string
}

func fingerprint(uuid string) string {
	sum := sha256.Sum256([]byte(uuid))
	return hex.EncodeToString(sum[:8])
}

func (r *Repository) name(p place) string {
	return fmt.Sprintf("%s%s%s.%s.%d.%d.%s", r.prefix, r.separator(), p.kind, p.volume, p.generation, p.made, p.nonce)
}

func (r *Repository) separator() string {
	if strings.Contains(r.prefix, ":") {
		return "."
	}
	return ":"
}

// parse is the opposite of name; false for targets that are not ours.
func (r *Repository) parse(name string) (place, bool) {
	text, ok := strings.CutPrefix(name, r.prefix+r.separator())
	parts := strings.Split(text, ".")
	if !ok || len(parts) != 5 {
		return place{}, false
	}
	generation, err1 := strconv.ParseUint(parts[2], 10, 64)
	made, err2 := strconv.ParseInt(parts[3], 10, 64)
	p := place{kind(parts[0]), parts[1], generation, made, parts[4]}
	return p, err1 == nil && err2 == nil && r.name(p) == name
}

func nonce() string { return fmt.Sprintf("%08x", rand.Uint32()) }

// export is a target with a volume as unit 1.
type export struct {
	id       int
	name     string
	readOnly bool
}

const unitNumber = 1

// export makes a target for a volume.
func (r *Repository) export(ctx context.Context, k kind, v volume, readOnly bool) (export, error) {
	if err := r.activate(ctx, v); err != nil {
		return export{}, err
	}
	made, err := r.now(ctx)
	if err != nil {
		return export{}, err
	}
	e := export{name: r.name(place{k, fingerprint(v.UUID), v.mark.generation, made, nonce()}), readOnly: readOnly}
	return r.offer(ctx, v, e)
}

// offer makes the target of an export. Nobody is let in before it is complete.
func (r *Repository) offer(ctx context.Context, v volume, e export) (_ export, err error) {
	who := "ALL"
	if r.user == "" {
		if who, err = r.address(ctx); err != nil {
			return e, err
		}
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run()) }()
	if e.id, err = r.newTarget(ctx, e.name); err != nil {
		if fault.Is(err, fault.Unavailable) { // it may have been made
			err = errors.Join(err, r.dropNamed(context.WithoutCancel(ctx), e.name))
		}
		return e, err
	}
	u.Push(func() error { return r.drop(ctx, e) })
	id, number := strconv.Itoa(e.id), strconv.Itoa(unitNumber)
	steps := [][]string{{"--op", "new", "--mode", "logicalunit", "--tid", id, "--lun", number, "--backing-store", r.device(v.Name)}}
	if e.readOnly {
		steps = append(steps, []string{"--op", "update", "--mode", "logicalunit", "--tid", id, "--lun", number, "--params", "readonly=1"})
	}
	if r.user != "" {
		steps = append(steps, []string{"--op", "bind", "--mode", "account", "--tid", id, "--user", r.user})
	}
	steps = append(steps, []string{"--op", "bind", "--mode", "target", "--tid", id, "--initiator-address", who})
	for _, step := range steps {
		if _, err := r.tgtadm(ctx, step...); err != nil {
			return e, err
		}
	}
	u.Keep()
	return e, nil
}

// dropLimit is for what a later Sweep does, too.
const dropLimit = 10 * time.Second

// drop removes the target of an export, also when the caller has left.
func (r *Repository) drop(ctx context.Context, e export) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(dropLimit, r.limit))
	defer cancel()
	return r.dropTarget(ctx, e.id)
}

// dropNamed is drop for a target of which not even the number is sure.
func (r *Repository) dropNamed(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, min(dropLimit, r.limit))
	defer cancel()
	all, err := r.targets(ctx)
	if err != nil {
		return nil // Sweep's
	}
	for _, t := range all {
		if t.name == name {
			return r.dropTarget(ctx, t.id)
		}
	}
	return nil
}

// dropAll removes the targets of a volume for which which is true.
func (r *Repository) dropAll(ctx context.Context, v volume, which func(place, target) bool) error {
	all, err := r.targets(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range all {
		if p, ok := r.parse(t.name); ok && p.volume == fingerprint(v.UUID) && which(p, t) {
			errs = append(errs, r.dropTarget(ctx, t.id))
		}
	}
	return errors.Join(errs...)
}

// fence takes a persistent image away from all who can write to it, but those that stay.
func (r *Repository) fence(ctx context.Context, v volume, stay func(place) bool) error {
	return r.dropAll(ctx, v, func(p place, _ target) bool {
		return (p.kind == owning || p.kind == attached) && !stay(p)
	})
}

// connect has QEMU open an export. Errors name the object; size may be nil, for that of the volume.
func (r *Repository) connect(ctx context.Context, name string, e export, size *int64) (*qemublock.Disk, error) {
	node := qemublock.ISCSI{Portal: r.portal, Target: e.name, LUN: unitNumber}
	if r.user != "" {
		password, err := secret.Read("CHAP_PASSWORD_FILE", r.passwordFile)
		if err != nil {
			return nil, r.object(name, err)
		}
		node.User, node.Password = r.user, qemublock.Secret(password)
	}
	return qemublock.Open(ctx, qemublock.Options{Label: r.label + ": object " + name, Node: node, Writable: !e.readOnly, Size: size, Limit: r.limit})
}

// open exports a volume and has QEMU open it. Errors name the object.
func (r *Repository) open(ctx context.Context, name string, k kind, v volume, readOnly bool, size *int64) (*qemublock.Disk, export, error) {
	e, err := r.export(ctx, k, v, readOnly)
	if err != nil {
		return nil, e, r.object(name, err)
	}
	d, err := r.connect(ctx, name, e, size)
	if err != nil {
		return nil, e, errors.Join(err, r.drop(ctx, e))
	}
	return d, e, nil
}
