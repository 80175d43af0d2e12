package lvm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

// Group is a volume group.
type Group struct {
	Name, UUID string
	Size, Free int64
	Extent     int64 // bytes of one: sizes of volumes are multiples
	Tags       []string
	Partial    bool // devices are missing
	Clustered  bool // shared by several hosts, with locks of lvmlockd
}

// Round up to what a volume in the group can have.
func (g Group) Round(size int64) int64 { return (size + g.Extent - 1) / g.Extent * g.Extent }

// Volume is a logical volume.
type Volume struct {
	Group, Name, UUID string
	Size              int64
	Tags              []string
	Pool              string // of a thin volume
	Origin            string // of a snapshot, thin or not, while it is there
	OriginUUID        string
	OriginSize        int64 // of a copy-on-write snapshot: how long it is; its Size is what it has for changes
	Thin              bool  // a thin volume, snapshots of such ones among them
	IsPool            bool  // a thin pool
	Snapshot          bool  // a copy-on-write snapshot that is not thin
	IsOrigin          bool  // snapshots that are not thin stand on it
	Active            bool
	Open              bool // somebody has its device open
	Suspended         bool // reads and writes hang: LVM died between two steps
	Broken            bool // LVM calls it invalid, failed, or partial
	Zeroing           bool // of a pool: blocks are zeroed when they are first written
	Chunk             int64
	DataPercent       float64 // of a thin volume, pool or snapshot that is active: what is filled
	MetadataPercent   float64 // of a pool
	Metadata          int64   // bytes of a pool's metadata
}

// Path of its device when it is active.
func (v Volume) Path() string { return Path(v.Group, v.Name) }

// Taken is what it fills of its pool or group.
func (v Volume) Taken() int64 {
	if v.Thin || v.IsPool {
		return int64(float64(v.Size)*v.DataPercent/100 + 0.5)
	}
	return v.Size
}

// Has reports whether it carries a tag.
func (v Volume) Has(tag string) bool {
	for _, t := range v.Tags {
		if t == tag {
			return true
		}
	}
	return false
}

const (
	groupFields  = "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_tags,vg_attr"
	volumeFields = "vg_name,lv_name,lv_uuid,lv_size,lv_tags,lv_attr,pool_lv,origin,origin_uuid,origin_size,data_percent,metadata_percent,chunk_size,lv_metadata_size"
)

// Groups lists the volume groups of the host.
func (t Tools) Groups(ctx context.Context) ([]Group, error) { return t.groups(ctx) }

// Group gives one volume group; fault.NotFound.
func (t Tools) Group(ctx context.Context, name string) (Group, error) {
	if err := CheckGroup(name); err != nil {
		return Group{}, err
	}
	all, err := t.groups(ctx, name)
	if err != nil {
		return Group{}, fmt.Errorf("volume group %s: %w", name, err)
	}
	if len(all) != 1 {
		return Group{}, fault.Errorf(fault.NotFound, "volume group %s: there are %d", name, len(all))
	}
	return all[0], nil
}

func (t Tools) groups(ctx context.Context, names ...string) ([]Group, error) {
	rows, err := t.report(ctx, "vgs", "vg", groupFields, names...)
	if err != nil {
		return nil, err
	}
	all := make([]Group, 0, len(rows))
	for _, r := range rows {
		attr := r["vg_attr"]
		g := Group{Name: r["vg_name"], UUID: r["vg_uuid"], Tags: r.tags("vg_tags"),
			Partial: at(attr, 3) == 'p', Clustered: strings.ContainsRune("cs", rune(at(attr, 5)))}
		if err := r.numbers(map[string]*int64{"vg_size": &g.Size, "vg_free": &g.Free, "vg_extent_size": &g.Extent}); err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// Volumes lists the logical volumes of a group; fault.NotFound when there is no such group.
func (t Tools) Volumes(ctx context.Context, group string) ([]Volume, error) {
	if err := CheckGroup(group); err != nil {
		return nil, err
	}
	all, err := t.volumes(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("volume group %s: %w", group, err)
	}
	return all, nil
}

// Volume gives one logical volume; fault.NotFound.
func (t Tools) Volume(ctx context.Context, group, name string) (Volume, error) {
	if err := CheckVolume(group, name); err != nil {
		return Volume{}, err
	}
	all, err := t.volumes(ctx, group+"/"+name)
	if err != nil {
		return Volume{}, fmt.Errorf("logical volume %s/%s: %w", group, name, err)
	}
	if len(all) != 1 {
		return Volume{}, fault.Errorf(fault.NotFound, "logical volume %s/%s: there are %d", group, name, len(all))
	}
	return all[0], nil
}

func (t Tools) volumes(ctx context.Context, of string) ([]Volume, error) {
	rows, err := t.report(ctx, "lvs", "lv", volumeFields, of)
	if err != nil {
		return nil, err
	}
	all := make([]Volume, 0, len(rows))
	for _, r := range rows {
		v, err := r.volume()
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// volume reads a row; lvs(8), "lv_attr bits".
func (r row) volume() (Volume, error) {
	attr := r["lv_attr"]
	kind, state, health := at(attr, 0), at(attr, 4), at(attr, 8)
	v := Volume{Group: r["vg_name"], Name: r["lv_name"], UUID: r["lv_uuid"], Tags: r.tags("lv_tags"), Pool: r["pool_lv"],
		Origin: r["origin"], OriginUUID: r["origin_uuid"],
		Thin: kind == 'V', IsPool: kind == 't', Snapshot: kind == 's' || kind == 'S', IsOrigin: kind == 'o' || kind == 'O',
		Active: strings.IndexByte("asISmM", state) >= 0, Suspended: state == 's' || state == 'S' || state == 'M' || state == 'd' || state == 'i',
		Open:    at(attr, 5) == 'o',
		Broken:  state == 'I' || state == 'S' || strings.IndexByte("pFDM", health) >= 0,
		Zeroing: at(attr, 7) == 'z'}
	if err := r.numbers(map[string]*int64{"lv_size": &v.Size, "origin_size": &v.OriginSize, "chunk_size": &v.Chunk, "lv_metadata_size": &v.Metadata}); err != nil {
		return v, err
	}
	for name, to := range map[string]*float64{"data_percent": &v.DataPercent, "metadata_percent": &v.MetadataPercent} {
		if r[name] == "" {
			continue
		}
		f, err := strconv.ParseFloat(r[name], 64)
		if err != nil {
			return v, fault.Errorf(fault.Internal, "lvs: %s of %s is %q", name, v.Name, r[name])
		}
		*to = f
	}
	return v, nil
}

func at(attr string, i int) byte {
	if i < len(attr) {
		return attr[i]
	}
	return '-'
}

type row map[string]string

func (r row) tags(field string) []string {
	if r[field] == "" {
		return nil
	}
	return strings.Split(r[field], ",")
}

func (r row) numbers(to map[string]*int64) error {
	for name, n := range to {
		text := strings.TrimSuffix(r[name], "B")
		if text == "" {
			continue
		}
		var err error
		if *n, err = strconv.ParseInt(text, 10, 64); err != nil {
			return fault.Errorf(fault.Internal, "lvm report: %s is %q", name, r[name])
		}
	}
	return nil
}

// report runs one of the reporting tools on the named objects.
func (t Tools) report(ctx context.Context, tool, kind, fields string, names ...string) ([]row, error) {
	args := append([]string{"--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields}, names...)
	out, err := t.run(ctx, tool, args...)
	if err != nil {
		return nil, err
	}
	return parseReport(tool, kind, out)
}

func parseReport(tool, kind string, out []byte) ([]row, error) {
	if i := bytes.IndexByte(out, '{'); i > 0 { // some versions warn on standard output
		out = out[i:]
	}
	var answer struct {
		Report []map[string][]map[string]string `json:"report"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fault.Errorf(fault.Internal, "%s: its report is no JSON: %w", tool, err)
	}
	var rows []row
	for _, part := range answer.Report {
		for _, r := range part[kind] {
			rows = append(rows, row(r))
		}
	}
	return rows, nil
}
