// Package lvmtest plays LVM's tools in memory, with files for devices, for tests of what drives them where no device mapper
// is. It knows the commands that package lvm gives, and answers as the real ones do.
package lvmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"hayloft/internal/command"
	"hayloft/internal/lvm"
)

// Host is a host with one volume group. Safe for concurrent use.
type Host struct {
	dir    string
	group  string
	extent int64
	size   int64
	// Refuse is asked before each command; an answer that is not "" is what the tool says and fails with.
	Refuse func(cmd command.Cmd) string

	mu      sync.Mutex
	volumes map[string]*volume
	serial  int
	ran     []string
}

type volume struct {
	uuid                       string
	size, metadata             int64 // size: of a copy-on-write snapshot what it has for changes
	shown                      int64 // of a copy-on-write snapshot: how long it is
	tags                       []string
	pool, origin               string
	isPool, active, open, skip bool
}

// New gives a host whose devices are files dir/GROUP/VOLUME.
func New(dir, group string, size, extent int64) *Host {
	return &Host{dir: dir, group: group, size: size, extent: extent, volumes: map[string]*volume{}}
}

// Path of a device.
func (h *Host) Path(name string) string { return filepath.Join(h.dir, h.group, name) }

// Ran lists the tools that ran, by name.
func (h *Host) Ran() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ran)
}

// SetOpen says whether somebody has the device open.
func (h *Host) SetOpen(name string, open bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.volumes[name].open = open
}

// Reboot leaves all volumes inactive.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, v := range h.volumes {
		v.active, v.open = false, false
		_ = os.Rename(h.Path(name), h.Path(name)+"~")
	}
}

// Run implements command.Runner.
func (h *Host) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Name, err)
	}
	h.ran = append(h.ran, cmd.Name)
	say := ""
	if h.Refuse != nil {
		say = h.Refuse(cmd)
	}
	var out []byte
	if say == "" {
		out, say = h.tool(cmd.Name, parse(cmd.Args))
	}
	if say != "" {
		return nil, &command.Error{Cmd: cmd, Status: 5, Stderr: "  WARNING: this is noise.\n  " + say + "\n"}
	}
	return out, nil
}

// arguments of one command: options with their values, and what is not an option.
type arguments struct {
	options map[string][]string
	rest    []string
}

func (a arguments) get(names ...string) string {
	for _, n := range names {
		if v := a.options[n]; len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

func parse(args []string) arguments {
	a := arguments{options: map[string][]string{}}
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case slices.Contains([]string{"-y", "-s", "-K", "--nosuffix", "--refresh", "--zeroout"}, arg):
			a.options[arg] = append(a.options[arg], "y")
		case strings.HasPrefix(arg, "-") && i+1 < len(args):
			i++
			a.options[arg] = append(a.options[arg], args[i])
		default:
			a.rest = append(a.rest, arg)
		}
	}
	return a
}

func number(text string) int64 {
	n, _ := strconv.ParseInt(strings.TrimRight(text, "bk"), 10, 64)
	return n
}

func (h *Host) tool(name string, a arguments) (out []byte, say string) {
	if name == "blkdiscard" {
		return nil, h.zero(a)
	}
	if len(a.rest) == 0 {
		return nil, ""
	}
	group, lv, _ := strings.Cut(a.rest[0], "/")
	if name == "lvrename" {
		lv = a.rest[1]
	}
	if group != h.group {
		return nil, fmt.Sprintf("Volume group %q not found\n  Cannot process volume group %s", group, group)
	}
	if name == "vgs" || name == "lvs" && lv == "" {
		return h.report(name), ""
	}
	if name == "lvcreate" {
		return nil, h.create(a, lv)
	}
	v := h.volumes[lv]
	if v == nil {
		return nil, fmt.Sprintf("Failed to find logical volume %q", group+"/"+lv)
	}
	switch name {
	case "lvremove":
		for _, full := range a.rest {
			name := strings.TrimPrefix(full, group+"/")
			switch v := h.volumes[name]; {
			case v == nil:
				say = fmt.Sprintf("Failed to find logical volume %q", full)
			case v.open:
				say = fmt.Sprintf("Logical volume %s in use.", full)
			default:
				h.remove(append(h.snapshots(name), name)...)
			}
		}
		return nil, say
	case "lvrename":
		to := a.rest[2]
		if h.volumes[to] != nil {
			return nil, fmt.Sprintf("Logical Volume %q already exists in volume group %q", to, group)
		}
		for _, snapshot := range h.snapshots(lv) {
			h.volumes[snapshot].origin = to
		}
		h.volumes[to] = v
		delete(h.volumes, lv)
		_ = os.Rename(h.Path(lv), h.Path(to))
	case "lvextend":
		return nil, h.extend(lv, v, h.round(number(a.get("-L"))))
	case "lvchange":
		for _, name := range a.rest {
			other := h.volumes[strings.TrimPrefix(name, group+"/")]
			if other == nil {
				return nil, fmt.Sprintf("Failed to find logical volume %q", name)
			}
			other.tags = slices.DeleteFunc(slices.Clone(other.tags), func(t string) bool { return slices.Contains(a.options["--deltag"], t) })
			other.tags = append(other.tags, a.options["--addtag"]...)
		}
		if a.get("-a") == "y" && !v.active {
			v.active = true
			_ = os.Rename(h.Path(lv)+"~", h.Path(lv))
		}
	}
	return nil, ""
}

// snapshots are the copy-on-write snapshots of a volume, which LVM removes with it.
func (h *Host) snapshots(of string) []string {
	var names []string
	for name, v := range h.volumes {
		if v.shown > 0 && v.origin == of {
			names = append(names, name)
		}
	}
	return names
}

func (h *Host) remove(names ...string) {
	for _, name := range names {
		_ = os.Remove(h.Path(name))
		_ = os.Remove(h.Path(name) + "~")
		delete(h.volumes, name)
	}
}

func (h *Host) round(n int64) int64 { return (n + h.extent - 1) / h.extent * h.extent }

func (h *Host) free() int64 {
	free := h.size
	for _, v := range h.volumes {
		if v.pool == "" {
			free -= v.size + 2*v.metadata
		}
	}
	return free
}

func (h *Host) create(a arguments, origin string) string {
	name := a.get("-n")
	if h.volumes[name] != nil {
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", name, h.group)
	}
	h.serial++
	v := &volume{uuid: fmt.Sprintf("uuid-%d", h.serial), tags: a.options["--addtag"], active: a.get("-a") != "n", skip: a.get("-k") == "y"}
	fill := byte(0xEE) // what others left on the disks
	switch {
	case a.get("-s") != "":
		from := h.volumes[origin]
		if from == nil {
			return fmt.Sprintf("Failed to find logical volume %q", h.group+"/"+origin)
		}
		v.pool, v.origin, v.size = from.pool, origin, from.size
		if from.pool == "" {
			if from.shown > 0 {
				return "Snapshots of snapshots are not supported."
			}
			v.shown, v.size = from.size, min(h.round(number(a.get("-L"))), h.round(lvm.SnapshotSpace(from.size, number(a.get("-c"))<<10)))
			if v.size > h.free() {
				return h.lacks(v.size)
			}
		}
		h.volumes[name] = v
		content, err := os.ReadFile(h.Path(origin))
		if err == nil {
			err = h.write(name, content)
		}
		return text(err)
	case a.get("--type") == "thin":
		v.pool, v.size, fill = a.get("--thinpool"), h.round(number(a.get("-V"))), 0
	default:
		v.size = h.round(number(a.get("-L")))
		if v.isPool = a.get("--type") == "thin-pool"; v.isPool {
			v.metadata = h.round(number(a.get("--poolmetadatasize")))
		}
	}
	if v.pool == "" && v.size+2*v.metadata > h.free() {
		return h.lacks(v.size)
	}
	h.volumes[name] = v
	if v.isPool {
		return ""
	}
	return text(h.write(name, bytes.Repeat([]byte{fill}, int(v.size))))
}

func (h *Host) lacks(size int64) string {
	return fmt.Sprintf("Volume group %q has insufficient free space (%d extents): %d required.", h.group, h.free()/h.extent, size/h.extent)
}

func text(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func (h *Host) write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(h.Path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(h.Path(name), content, 0o660)
}

func (h *Host) extend(name string, v *volume, size int64) string {
	switch {
	case len(h.snapshots(name)) > 0:
		return "Snapshot origin volumes can be resized only while inactive: try lvchange -an."
	case v.shown > 0:
		return "" // it is its space that is extended, and no more than it can use
	case size <= v.size:
		return "New size given (1 extents) not larger than existing size (1 extents)"
	}
	if v.pool == "" && size-v.size > h.free() {
		return fmt.Sprintf("Insufficient free space: %d extents needed, but only %d available", (size-v.size)/h.extent, h.free()/h.extent)
	}
	old := v.size
	v.size = size
	if v.isPool {
		return ""
	}
	f, err := os.OpenFile(h.Path(name), os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	fill := byte(0xEE)
	if v.pool != "" {
		fill = 0
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{fill}, int(size-old)), old)
	return text(err)
}

func (h *Host) zero(a arguments) string {
	f, err := os.OpenFile(a.rest[0], os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	_, err = f.WriteAt(make([]byte, number(a.get("--length"))), number(a.get("--offset")))
	return text(err)
}

func (h *Host) report(tool string) []byte {
	kind, rows := "vg", []map[string]string{}
	if tool == "vgs" {
		rows = append(rows, map[string]string{"vg_name": h.group, "vg_uuid": "g", "vg_size": fmt.Sprint(h.size), "vg_free": fmt.Sprint(h.free()),
			"vg_extent_size": fmt.Sprint(h.extent), "vg_tags": "", "vg_attr": "wz--n-"})
	} else {
		kind = "lv"
		for _, name := range slices.Sorted(maps.Keys(h.volumes)) {
			v := h.volumes[name]
			attr := []byte("-wi-------")
			row := map[string]string{"vg_name": h.group, "lv_name": name, "lv_uuid": v.uuid, "lv_size": fmt.Sprint(v.size), "lv_tags": strings.Join(v.tags, ","),
				"pool_lv": v.pool, "origin": v.origin, "origin_uuid": "", "origin_size": "", "data_percent": "", "metadata_percent": "", "chunk_size": "0", "lv_metadata_size": ""}
			if v.pool != "" {
				attr[0], row["data_percent"] = 'V', "50.00"
			}
			if from := h.volumes[v.origin]; from != nil {
				row["origin_uuid"] = from.uuid
			}
			if v.shown > 0 {
				attr[0], row["origin_size"] = 's', fmt.Sprint(v.shown)
			}
			if len(h.snapshots(name)) > 0 {
				attr[0] = 'o'
			}
			if v.isPool {
				attr[0], attr[7] = 't', 'z'
			}
			if v.active {
				attr[4] = 'a'
			}
			if v.open {
				attr[5] = 'o'
			}
			row["lv_attr"] = string(attr)
			rows = append(rows, row)
		}
	}
	out, _ := json.Marshal(map[string]any{"report": []any{map[string]any{kind: rows}}, "log": []any{}})
	return out
}
