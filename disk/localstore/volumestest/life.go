package volumestest

import (
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
)

// zeros fills much of the place with bytes of one tenant, and looks for them in the volumes of the next one.
func zeros(s suite) {
	old := s.provision(s.spec("1.0", 4))
	if !old.Zeros || old.Raw {
		s.Errorf("%+v", old)
	}
	s.fill(old, 0xA5, 0, old.Size)
	if err := s.store.Unprovision(s.Context(), "1.0"); err != nil {
		s.Fatal(err)
	}
	odd := s.provision(sized("next.0", s.Unit-1000))
	s.holds(odd, 0, 0, odd.Size)
	v := s.provision(s.spec("next.1", 3))
	s.holds(v, 0, 0, v.Size)
}

func again(s suite) {
	first := s.provision(s.spec("base.0a", 2))
	s.fill(first, 0x11, 0, first.Size)
	for _, units := range []int64{2, 1} {
		v := s.provision(s.spec("base.0a", units))
		if v.Path != first.Path || v.Size != first.Size || v.Zeros {
			s.Errorf("%+v, first %+v", v, first)
		}
	}
	s.holds(first, 0x11, 0, first.Size)
	found, err := s.store.Find(s.Context(), "base.0a")
	if err != nil || found.Path != first.Path || found.Size != first.Size || found.Block != first.Block || found.Zeros {
		s.Errorf("%+v %v", found, err)
	}
	if list := s.list(); len(list) != 1 || list[0].Path != first.Path || list[0].Size != first.Size || list[0].Taken <= 0 {
		s.Errorf("%+v", list)
	}
}

func longer(s suite) {
	old := s.provision(s.spec("old", 3))
	s.fill(old, 0xA5, 0, old.Size)
	v := s.provision(s.spec("1.0", 1))
	s.fill(v, 0x22, 0, v.Size)
	if err := s.store.Unprovision(s.Context(), "old"); err != nil {
		s.Fatal(err)
	}
	long := s.provision(s.spec("1.0", 3))
	if long.Path != v.Path || long.Size < 3*s.Unit {
		s.Fatalf("%+v", long)
	}
	s.holds(long, 0x22, 0, v.Size)
	s.holds(long, 0, v.Size, long.Size)
}

func refused(s suite) {
	for _, bad := range []string{"", ".", "a/b", "A", "a b", "-a", "a.", "ä", "a\n", strings.Repeat("a", 101)} {
		_, err := s.store.Provision(s.Context(), s.spec(bad, 1))
		class(s, bad, err, fault.Invalid)
		_, err = s.store.Find(s.Context(), bad)
		class(s, bad, err, fault.Invalid)
		class(s, bad, s.store.Unprovision(s.Context(), bad), fault.Invalid)
	}
	for _, size := range []int64{0, -1, 1 << 62} {
		_, err := s.store.Provision(s.Context(), sized("1.0", size))
		refusal(s, err, fault.Invalid, "1.0")
	}
	if got := s.names(); got != "" {
		s.Error(got)
	}
	for _, good := range []string{"base." + strings.Repeat("0f", 32), strings.Repeat("a-", 49) + "aa"} {
		v := s.provision(sized(good, 1))
		if found, err := s.store.Find(s.Context(), good); err != nil || found.Path != v.Path {
			s.Errorf("%s: %+v %v", good, found, err)
		}
		if err := s.store.Unprovision(s.Context(), good); err != nil {
			s.Error(err)
		}
	}
}

func owner(s suite) {
	uid, gid := unix.Geteuid(), unix.Getegid()
	if uid == 0 {
		uid, gid = 23456, 23457
	}
	spec := s.spec("1.0", 1)
	spec.UID, spec.GID = uid, gid
	check := func(v localstore.Volume) {
		s.Helper()
		var st unix.Stat_t
		if err := unix.Stat(v.Path, &st); err != nil {
			s.Fatal(err)
		}
		if int(st.Uid) != uid || int(st.Gid) != gid || st.Mode&0o7777 != 0o600 {
			s.Errorf("%s is %d:%d %o", v.Path, st.Uid, st.Gid, st.Mode&0o7777)
		}
	}
	v := s.provision(spec)
	check(v)
	if s.Reboot != nil {
		s.Reboot(s.t)
	}
	found, err := s.Open(s.t, 0).Find(s.Context(), "1.0")
	if err != nil {
		s.Fatal(err)
	}
	check(found)
	if unix.Geteuid() == 0 {
		spec.UID, uid = 23458, 23458
		check(s.provision(spec))
		if found, err = s.store.Find(s.Context(), "1.0"); err != nil {
			s.Fatal(err)
		}
		check(found)
	}
}

func foreign(s suite) {
	check := s.Foreign(s.t, "1.0")
	_, err := s.store.Provision(s.Context(), s.spec("1.0", 1))
	refusal(s, err, fault.Busy, "1.0")
	class(s, "unprovision", s.store.Unprovision(s.Context(), "1.0"), fault.Busy)
	_, err = s.store.Find(s.Context(), "1.0")
	class(s, "find", err, fault.Busy)
	if got := s.names(); got != "" {
		s.Errorf("it is listed: %s", got)
	}
	s.provision(s.spec("2.0", 1))
	_, err = s.store.Rename(s.Context(), "2.0", "1.0")
	class(s, "rename onto it", err, fault.Busy)
	_, err = s.store.Rename(s.Context(), "1.0", "3.0")
	class(s, "rename it", err, fault.Busy)
	if s.Snapshots {
		_, err = s.store.Snapshot(s.Context(), "2.0", s.spec("1.0", 1))
		class(s, "snapshot onto it", err, fault.Busy)
		_, err = s.store.Snapshot(s.Context(), "1.0", s.spec("4.0", 1))
		class(s, "snapshot of it", err, fault.Busy)
	}
	s.Open(s.t, 0)
	if err := check(); err != nil {
		s.Error(err)
	}
}

func halfMade(s suite) {
	s.HalfMade(s.t, "1.0", s.Unit)
	if _, err := s.store.Find(s.Context(), "1.0"); !fault.Is(err, fault.NotFound) {
		s.Errorf("found: %v", err)
	}
	if got := s.names(); got != "" {
		s.Errorf("listed: %s", got)
	}
	v := s.provision(s.spec("1.0", 1))
	s.holds(v, 0, 0, v.Size)
	s.HalfMade(s.t, "2.0", s.Unit)
	if err := s.store.Unprovision(s.Context(), "2.0"); err != nil {
		s.Error(err)
	}
	before := s.free()
	s.HalfMade(s.t, "3.0", s.Unit)
	s.store = s.Open(s.t, 0)
	if free := s.free(); free < before {
		s.Errorf("%d bytes did not come back when the store was opened", before-free)
	}
}

func open(s suite) {
	v := s.provision(s.spec("1.0", 1))
	release := s.Hold(s.t, v)
	err := s.store.Unprovision(s.Context(), "1.0")
	refusal(s, err, fault.Busy, "1.0")
	if got := s.names(); got != "1.0" {
		s.Errorf("there is %q", got)
	}
	if found, err := s.store.Find(s.Context(), "1.0"); err != nil || found.Path != v.Path {
		s.Error(found, err)
	}
	release()
	if err := s.store.Unprovision(s.Context(), "1.0"); err != nil {
		s.Error(err)
	}
}

func restart(s suite) {
	var made []localstore.Volume
	for i := range 2 {
		v := s.provision(s.spec(name(i), 1))
		s.fill(v, byte(0x30+i), 0, v.Size)
		made = append(made, v)
	}
	if s.Reboot != nil {
		s.Reboot(s.t)
	}
	s.store = s.Open(s.t, 0)
	if got := s.names(); got != "0.0 1.0" {
		s.Fatal(got)
	}
	for i, v := range made {
		found, err := s.store.Find(s.Context(), v.Name)
		if err != nil || found.Path != v.Path || found.Size != v.Size {
			s.Fatalf("%+v %v", found, err)
		}
		s.holds(found, byte(0x30+i), 0, v.Size)
	}
}

func notThere(s suite) {
	_, err := s.store.Find(s.Context(), "1.0")
	refusal(s, err, fault.NotFound, "1.0")
	for range 2 {
		if err := s.store.Unprovision(s.Context(), "1.0"); err != nil {
			s.Error(err)
		}
	}
	if got := s.names(); got != "" {
		s.Error(got)
	}
}
