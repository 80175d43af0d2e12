package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// script answers one command after the other, and remembers them.
type script struct {
	answers []answer
	ran     []string
}

type answer struct{ out, stderr string }

func (s *script) Run(ctx context.Context, cmd command.Cmd) ([]byte, error) {
	s.ran = append(s.ran, cmd.String())
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := answer{}
	if len(s.answers) > 0 {
		a, s.answers = s.answers[0], s.answers[1:]
	}
	if a.stderr != "" {
		return nil, &command.Error{Cmd: cmd, Status: 5, Stderr: a.stderr}
	}
	return []byte(a.out), nil
}

const report = `  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg","lv_name":"a","lv_uuid":"u1","lv_size":"8388608","lv_tags":"hayloft,hayloft.name=a","lv_attr":"-wi-ao---k","pool_lv":"","origin":"","origin_uuid":"","data_percent":"","metadata_percent":"","chunk_size":"0","lv_metadata_size":""},
                  {"vg_name":"vg","lv_name":"pool","lv_uuid":"u2","lv_size":"104857600","lv_tags":"","lv_attr":"twi-aotz--","pool_lv":"","origin":"","origin_uuid":"","data_percent":"25.00","metadata_percent":"10.94","chunk_size":"65536","lv_metadata_size":"4194304"},
                  {"vg_name":"vg","lv_name":"thin","lv_uuid":"u3","lv_size":"52428800","lv_tags":"","lv_attr":"Vwi---tz-k","pool_lv":"pool","origin":"base","origin_uuid":"u9","data_percent":"","metadata_percent":"","chunk_size":"0","lv_metadata_size":""},
                  {"vg_name":"vg","lv_name":"snap","lv_uuid":"u4","lv_size":"4194304","lv_tags":"","lv_attr":"swi-s-s---","pool_lv":"","origin":"a","origin_uuid":"u1","origin_size":"8388608","data_percent":"50.00","metadata_percent":"","chunk_size":"4096","lv_metadata_size":""}
              ]
          }
      ]
      ,
      "log": [
      ]
  }
`

func TestReport(t *testing.T) {
	s := &script{answers: []answer{{out: report}}}
	all, err := Tools{Runner: s}.Volumes(t.Context(), "vg")
	if err != nil || len(all) != 4 {
		t.Fatal(all, err)
	}
	a, pool, thin, snap := all[0], all[1], all[2], all[3]
	if a.Size != 8<<20 || !a.Active || !a.Open || a.Thin || !a.Has("hayloft.name=a") || a.Has("x") || a.Taken() != a.Size || a.Path() != "/dev/vg/a" {
		t.Errorf("%+v", a)
	}
	if !pool.IsPool || !pool.Zeroing || pool.Chunk != 64<<10 || pool.Metadata != 4<<20 || pool.Taken() != 25<<20 {
		t.Errorf("%+v", pool)
	}
	if !thin.Thin || thin.Active || thin.Pool != "pool" || thin.Origin != "base" || thin.OriginUUID != "u9" || thin.Taken() != 0 {
		t.Errorf("%+v", thin)
	}
	if !snap.Snapshot || !snap.Suspended || snap.Thin || snap.Origin != "a" || snap.OriginSize != 8<<20 || snap.Size != 4<<20 {
		t.Errorf("%+v", snap)
	}
}

func TestErrors(t *testing.T) {
	for _, row := range []struct {
		stderr string
		class  fault.Class
		says   string
	}{
		{"  Volume group \"vg\" not found\n  Cannot process volume group vg\n", fault.NotFound, "not found"},
		{"  Failed to find logical volume \"vg/a\"\n", fault.NotFound, "vg/a"},
		{"  Logical Volume \"a\" already exists in volume group \"vg\"\n", fault.Exists, "already exists"},
		{"  WARNING: Sum of all thin volume sizes exceeds\n  Logical volume vg/a in use.\n", fault.Busy, "Logical volume vg/a in use."},
		{"  Logical volume vg/a contains a filesystem in use.\n", fault.Busy, ""},
		{"  Cannot change VG vg while PVs are missing.\n", fault.Unavailable, ""},
		{"  /dev/mapper/control: open failed: Permission denied\n  Failure to communicate with kernel device-mapper driver.\n", fault.Permission, ""},
		{"  File descriptor 7 (pipe:[1]) leaked on lvs invocation. Parent PID 1: x\n  Something new.\n", fault.Internal, "Something new."},
		{"  Existing logical volume \"none\" not found in volume group \"vg\"\n", fault.NotFound, "none"},
		{"  Option --wipesignatures is unsupported with snapshots.\n  Run `lvcreate --help' for more information.\n", fault.Internal, "unsupported"},
		{"", fault.Internal, "exit status 5"},
	} {
		e := recognise("lvx", row.stderr, 5)
		if fault.ClassOf(e) != row.class || !strings.Contains(e.Error(), row.says) || e.passing {
			t.Errorf("%q: %v is %v", row.stderr, e, fault.ClassOf(e))
		}
		if strings.Contains(e.Error(), "WARNING") || strings.Contains(e.Error(), "leaked") {
			t.Errorf("noise: %v", e)
		}
	}
}

func TestSpaceIsInBytes(t *testing.T) {
	const group = `{"report":[{"vg":[{"vg_name":"vg","vg_uuid":"g","vg_size":"1000000","vg_free":"8192","vg_extent_size":"4096","vg_tags":"","vg_attr":"wz--n-"}]}]}`
	for _, say := range []string{"  Volume group \"vg\" has insufficient free space (2 extents): 25 required.\n",
		"  Insufficient free space: 25 extents needed, but only 2 available\n"} {
		s := &script{answers: []answer{{stderr: say}, {out: group}}}
		err := Tools{Runner: s}.Create(t.Context(), New{Group: "vg", Name: "a", Size: 102400})
		if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "102400 bytes") || !strings.Contains(err.Error(), "8192") {
			t.Error(err)
		}
	}
}

func TestLocksOfOthersAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := answer{stderr: "  Can't get lock for vg\n  Cannot process volume group vg\n"}
		s := &script{answers: []answer{held, held, held, {}}}
		if err := (Tools{Runner: s}).Remove(t.Context(), "vg", "a"); err != nil || len(s.ran) != 4 {
			t.Error(err, s.ran)
		}
		s = &script{answers: slices.Repeat([]answer{held}, 1000)}
		began := time.Now()
		err := Tools{Runner: s, Patience: 3 * time.Second}.Remove(t.Context(), "vg", "a")
		if took := time.Since(began); !fault.Is(err, fault.Busy) || took < 3*time.Second || took > 10*time.Second {
			t.Error(err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := (Tools{Runner: s}).Volumes(ctx, "vg"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestChangesAreNotEndedHalfWay(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	runner := runnerFunc(func(inner context.Context) error { cancel(); return inner.Err() })
	if err := (Tools{Runner: runner}).Remove(ctx, "vg", "a"); err != nil {
		t.Error(err)
	}
	if err := (Tools{Runner: runner}).Remove(ctx, "vg", "a"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type runnerFunc func(ctx context.Context) error

func (f runnerFunc) Run(ctx context.Context, _ command.Cmd) ([]byte, error) { return nil, f(ctx) }

func TestCommands(t *testing.T) {
	s := &script{}
	tools := Tools{Runner: s, Config: "devices { }"}
	for _, err := range []error{
		tools.Create(t.Context(), New{Group: "vg", Name: "thick", Size: 1000, Tags: []string{"a=b"}, Private: true}),
		tools.Create(t.Context(), New{Group: "vg", Name: "thin", Size: 512, Pool: "p", Inactive: true}),
		tools.Create(t.Context(), New{Group: "vg", Name: "snap", Origin: "thin"}),
		tools.Create(t.Context(), New{Group: "vg", Name: "cow", Origin: "thick", Size: 512, Chunk: 64 << 10}),
		tools.Retag(t.Context(), "vg", []string{"a", "b"}, []string{"x"}, []string{"y"}),
		tools.Retag(t.Context(), "vg", []string{"a"}, nil, nil),
		tools.Rename(t.Context(), "vg", "a", "b"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"lvcreate --config devices { } -y -n thick --addtag a=b -k y -K -a y -W n -Z n --type linear -L 1024b vg",
		"lvcreate --config devices { } -y -n thin -k n -a n -W n --type thin -V 512b --thinpool p vg",
		"lvcreate --config devices { } -y -n snap -k n -a y -s vg/thin",
		"lvcreate --config devices { } -y -n cow -k n -a y -c 64k -s -L 512b vg/thick",
		"lvchange --config devices { } --deltag y --addtag x vg/a vg/b",
		"lvrename --config devices { } vg a b",
	}
	if !slices.Equal(s.ran, want) {
		t.Errorf("%s", strings.Join(s.ran, "\n"))
	}
}

func TestNames(t *testing.T) {
	for _, bad := range []string{"", "-a", ".", "..", "a/b", "a b", "a;b", "ä", "snapshot1", "pvmove0", "x_tdata", "a$b", strings.Repeat("a", 128),
		strings.Repeat("a-", 50)} {
		if err := CheckVolume("vg", bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
		if err := (Tools{Runner: &script{}}).Remove(t.Context(), "vg", bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"a", "hayloft-a_b-12.0", "A+b_c.d-e", strings.Repeat("a", 124)} {
		if err := CheckVolume("vg", good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-a", "a b", "a,b", "ä", "a\"", strings.Repeat("a", 1025)} {
		if err := CheckTag(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := CheckTag("hayloft.owner=0:12/x!&#"); err != nil {
		t.Error(err)
	}
	if got := DeviceName("a-b", "c-d"); got != "a--b-c--d" {
		t.Error(got)
	}
}

func TestPoolGeometry(t *testing.T) {
	for _, size := range []int64{1 << 20, 1 << 30, 1 << 40, 1 << 43, 1 << 46} {
		chunk, metadata := PoolGeometry(size)
		if chunk < 64<<10 || chunk > 1<<30 || chunk&(chunk-1) != 0 || metadata < size/chunk*64 || metadata > maxMetadata {
			t.Errorf("%d: chunk %d, metadata %d", size, chunk, metadata)
		}
	}
}

func TestSnapshotSpace(t *testing.T) {
	const chunk = 64 << 10
	for chunks, want := range map[int64]int64{0: 2, 1: 3, 4095: 4097, 4096: 4099, 4097: 4100, 8192: 8196} { // a chunk has notes of 4096
		if got := SnapshotSpace(chunks*chunk, chunk) / chunk; got != want+(want+63)/64 {
			t.Errorf("%d chunks need %d, not %d and a 64th", chunks, got, want)
		}
	}
	if SnapshotSpace(chunk+1, chunk) != SnapshotSpace(2*chunk, chunk) {
		t.Error("a part of a chunk is one")
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(report))
	f.Add([]byte(`{"report":[{"lv":[{"lv_attr":"V","lv_size":"x"}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		rows, err := parseReport("lvs", "lv", text)
		if err != nil {
			return
		}
		for _, r := range rows {
			if v, err := r.volume(); err == nil && v.Name != r["lv_name"] {
				t.Error(v)
			}
		}
		if _, err := json.Marshal(rows); err != nil {
			t.Error(err)
		}
	})
}

func FuzzErrors(f *testing.F) {
	f.Add("  Volume group \"vg\" has insufficient free space (2 extents): 25 required.\n")
	f.Fuzz(func(t *testing.T, stderr string) {
		if e := recognise("lvs", stderr, 5); e.Message == "" || e.needed < 0 {
			t.Errorf("%q: %+v", stderr, e)
		}
	})
}
