package iscsi

import (
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

func FuzzNames(f *testing.F) {
	for _, s := range []string{"a", "d/e r_tdata-x.y", "ü/🐎", "_", "_2F", "+", "_zz", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := encode(s)
		if got, ok := decode(text); !ok || got != s {
			t.Errorf("%q is %q is %q", s, text, got)
		}
		if err := lvm.CheckVolume("vg", objectPrefix+text); err != nil && len(text) < 40 {
			t.Errorf("%q: %v", s, err)
		}
		if got, ok := decode(s); ok && encode(got) != s {
			t.Errorf("%q is %q", s, got)
		}
	})
}

func FuzzTags(f *testing.F) {
	for _, s := range []string{"5.owned.3.host", "0.free.0.", "1.undrained.-3.a_2Fb.c", "x", "1.1.1.1", "1753.0a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := parseMark(s); err == nil && m.tag() != markTag+s {
			t.Errorf("%q is %+v", s, m)
		}
		if l, err := parseLease(s); err == nil && l.tag() != leaseTag+s {
			t.Errorf("%q is %+v", s, l)
		}
		m := mark{owned, 7, repository.Owner{Host: s, Machine: 3}}
		if got, err := parseMark(strings.TrimPrefix(m.tag(), markTag)); err != nil || got != m {
			t.Errorf("%+v is %+v, %v", m, got, err)
		}
		if len(s) < 100 {
			if err := lvm.CheckTag(m.tag()); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMarkOfNobody(t *testing.T) {
	for _, text := range []string{"", "1", "1.free", "1.nobody.2.h", "01.free.0.", "1.free.x.h", "-1.free.0.", "1.free.0.a_", "1.free.0.a/b"} {
		if m, err := parseMark(text); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%q is %+v, %v", text, m, err)
		}
	}
}

const shown = `Target 75: iqn.2026-01.org.hayloft:r.0011.0.9.ff
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 2
            Initiator: iqn.2008-11.org.linux-kvm alias: none
            Connection: 0
                IP Address: 127.0.0.1
        I_T nexus: 3
            Initiator: Target 9: alias: none
    LUN information:
        LUN: 0
            Type: controller
            Backing store path: None
        LUN: 1
            Type: disk
            Readonly: Yes
            Backing store path: /dev/vg/hl-a: b
            Backing store flags: 
    Account information:
    ACL information:
        127.0.0.1
Target 2: other
    LUN information:
        LUN: 0
            Backing store path: None
`

func TestParseTargets(t *testing.T) {
	all, err := parseTargets(shown)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	one := all[0]
	if one.id != 75 || one.name != "iqn.2026-01.org.hayloft:r.0011.0.9.ff" || one.sessions != 2 || len(one.units) != 1 || one.units[0] != (unit{1, "/dev/vg/hl-a: b"}) {
		t.Errorf("%+v", one)
	}
	if two := all[1]; two.id != 2 || two.name != "other" || two.sessions != 0 || len(two.units) != 0 {
		t.Errorf("%+v", two)
	}
}

func FuzzTargets(f *testing.F) {
	f.Add(shown)
	f.Add("Target : x\nTarget 1:\n LUN: x\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseTargets(text)
		for _, target := range all {
			if err == nil && (target.name == "" || target.id < 0 || !strings.Contains(text, target.name)) {
				t.Errorf("%+v", target)
			}
		}
	})
}

func FuzzPlaces(f *testing.F) {
	f.Add("iqn.2026-01.org.hayloft:r.0011.0.9.ff")
	f.Add("iqn.2026-01.org.hayloft:o.0011.1753000000.0.")
	f.Fuzz(func(t *testing.T, name string) {
		for _, prefix := range []string{defaultPrefix, defaultPrefix + ":site"} {
			r := &Repository{prefix: prefix}
			if p, ok := r.parse(name); ok && r.name(p) != name {
				t.Errorf("%q is %+v", name, p)
			}
		}
	})
}

func TestPlaces(t *testing.T) {
	r := &Repository{prefix: defaultPrefix}
	p := place{owning, fingerprint("u"), 7, 9, nonce()}
	if got, ok := r.parse(r.name(p)); !ok || got != p || !iqn.MatchString(r.name(p)) {
		t.Errorf("%+v is %s", p, r.name(p))
	}
	for _, name := range []string{"iqn.2026-01.org.hayloft", "iqn.2026-01.org.hayloft:x", "iqn.2026-01.org.hayloft2:r.00.0.9.ff", "iqn.2026-01.org.hayloft:r.00.0.9.ff.1"} {
		if p, ok := r.parse(name); ok {
			t.Errorf("%s is taken for ours: %+v", name, p)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, row := range []disk.Repository{
		{Path: ""}, {Path: "/dev/vg"}, {Path: "-vg"}, {Path: "vg/lv"},
		{Path: "vg", Options: map[string]string{"POOL": "a/b"}}, {Path: "vg", Options: map[string]string{"POOL": "-p"}},
		{Path: "vg", Options: map[string]string{"TARGET": "hayloft"}}, {Path: "vg", Options: map[string]string{"TARGET": "iqn.2026-01.Org"}},
		{Path: "vg", Options: map[string]string{"TARGET": "iqn.2026-01.org,x"}}, {Path: "vg", Options: map[string]string{"ATTACH": "both"}},
		{Path: "vg", Options: map[string]string{"CHAP_USER": "u"}}, {Path: "vg", Options: map[string]string{"CHAP_PASSWORD_FILE": "/x"}},
		{Path: "vg", Options: map[string]string{"CHAP_USER": "-u", "CHAP_PASSWORD_FILE": "/x"}},
		{Path: "vg", Options: map[string]string{"HOST": "a b"}}, {Path: "vg", Options: map[string]string{"HOST": "h", "PORT": "x"}},
		{Path: "vg", Options: map[string]string{"PORTAL": "a b"}}, {Path: "vg", Options: map[string]string{"PORTAL": "h,1"}}, {Path: "vg", Options: map[string]string{"PORTAL": ":3260"}},
	} {
		row.ID = 7
		if _, err := New(row); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7") {
			t.Errorf("%+v: %v", row, err)
		}
	}
	for want, options := range map[string]map[string]string{
		"127.0.0.1:3260": nil, "storage:3260": {"HOST": "root@storage:2222"}, "10.0.0.1:3261": {"HOST": "storage", "PORTAL": "10.0.0.1:3261"},
		"[fe80::1]:3260": {"PORTAL": "[fe80::1]"}, "[::1]:3260": {"PORTAL": "::1"}, "[::1]:99": {"PORTAL": "[::1]:99"},
	} {
		r, err := New(disk.Repository{Path: "vg", Options: options})
		if err != nil || r.portal != want {
			t.Errorf("%v: %+v, %v", options, r, err)
			continue
		}
		r.Close()
	}
	r, err := New(disk.Repository{Path: "vg"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Stat(t.Context(), strings.Repeat("a/", 3)+strings.Repeat("x", 120)); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
