package volumestest

import (
	"hayloft/cloud/fault"
)

func snapshots(s suite) {
	v := s.provision(s.spec("base.1", 2))
	s.fill(v, 0x41, 0, v.Size)
	if !s.Snapshots {
		_, err := s.store.Snapshot(s.Context(), "base.1", s.spec("1.0", 2))
		refusal(s, err, fault.Unsupported, "base.1")
		if got := s.names(); got != "base.1" {
			s.Error(got)
		}
		return
	}
	one, err := s.store.Snapshot(s.Context(), "base.1", s.spec("1.0", 2))
	if err != nil {
		s.Fatal(err)
	}
	s.holds(one, 0x41, 0, v.Size)
	s.fill(one, 0x42, 0, s.Unit)
	s.holds(v, 0x41, 0, v.Size)
	again, err := s.store.Snapshot(s.Context(), "base.1", s.spec("1.0", 2))
	if err != nil || again.Path != one.Path {
		s.Fatal(again, err)
	}
	s.holds(again, 0x42, 0, s.Unit)

	// Of a snapshot, and longer.
	two, err := s.store.Snapshot(s.Context(), "1.0", s.spec("2.0", 3))
	if err != nil {
		s.Fatal(err)
	}
	s.fill(v, 0x43, 0, v.Size)
	for _, gone := range []string{"base.1", "1.0"} {
		if err := s.store.Unprovision(s.Context(), gone); err != nil {
			s.Fatal(err)
		}
	}
	s.holds(two, 0x42, 0, s.Unit)
	s.holds(two, 0x41, s.Unit, 2*s.Unit)
	s.holds(two, 0, 2*s.Unit, two.Size)

	_, err = s.store.Snapshot(s.Context(), "base.1", s.spec("3.0", 1))
	refusal(s, err, fault.NotFound, "base.1")
	s.provision(s.spec("4.0", 1))
	_, err = s.store.Snapshot(s.Context(), "2.0", s.spec("4.0", 1))
	refusal(s, err, fault.Exists, "4.0")
	_, err = s.store.Snapshot(s.Context(), "4.0", s.spec("4.0", 1))
	class(s, "of itself", err, fault.Invalid)
	_, err = s.store.Snapshot(s.Context(), "2.0", s.spec("5.0", int64(4*s.Units)))
	refusal(s, err, fault.OutOfSpace, "5.0")
	if got := s.names(); got != "2.0 4.0" {
		s.Error(got)
	}
}

func rename(s suite) {
	v := s.provision(s.spec("1.0.new", 1))
	s.fill(v, 0x51, 0, v.Size)
	moved, err := s.store.Rename(s.Context(), "1.0.new", "1.0")
	if err != nil {
		s.Fatal(err)
	}
	if moved.Name != "1.0" || moved.Size != v.Size {
		s.Errorf("%+v", moved)
	}
	s.holds(moved, 0x51, 0, v.Size)
	if got := s.names(); got != "1.0" {
		s.Error(got)
	}
	again, err := s.store.Rename(s.Context(), "1.0.new", "1.0")
	if err != nil || again.Path != moved.Path {
		s.Error(again, err)
	}
	fresh := s.provision(s.spec("1.0.new", 1))
	s.holds(fresh, 0, 0, fresh.Size)
	_, err = s.store.Rename(s.Context(), "1.0.new", "1.0")
	refusal(s, err, fault.Exists, "1.0")
	_, err = s.store.Rename(s.Context(), "9.0", "8.0")
	refusal(s, err, fault.NotFound, "9.0")
	if back, err := s.store.Rename(s.Context(), "1.0", "2.0"); err != nil {
		s.Error(err)
	} else if back, err = s.store.Rename(s.Context(), "2.0", "1.0"); err != nil || back.Path != moved.Path {
		s.Error(back, err)
	} else {
		s.holds(back, 0x51, 0, back.Size)
	}
	if got := s.names(); got != "1.0 1.0.new" {
		s.Error(got)
	}
}

// raw volumes are for who writes all of them.
func raw(s suite) {
	tenant := s.provision(s.spec("old", 2))
	s.fill(tenant, 0xA5, 0, tenant.Size)
	if err := s.store.Unprovision(s.Context(), "old"); err != nil {
		s.Fatal(err)
	}
	spec := s.spec("1.0.new", 2)
	spec.Raw = true
	spec.Size -= s.Unit / 2
	v := s.provision(spec)
	if !v.Raw {
		s.Errorf("%+v", v)
	}
	if v.Zeros {
		s.holds(v, 0, 0, v.Size)
	}
	s.holds(v, 0, spec.Size, v.Size)
	s.fill(v, 0x61, 0, s.Unit)
	if v = s.provision(spec); !v.Raw || v.Zeros {
		s.Errorf("%+v", v)
	}
	if found, err := s.Open(s.t, 0).Find(s.Context(), "1.0.new"); err != nil || !found.Raw {
		s.Errorf("%+v %v", found, err)
	}
	if s.Snapshots {
		_, err := s.store.Snapshot(s.Context(), "1.0.new", s.spec("2.0", 2))
		refusal(s, err, fault.WrongState, "1.0.new")
	}
	whole := spec
	whole.Raw = false
	v = s.provision(whole)
	if v.Raw || !v.Zeros {
		s.Errorf("%+v", v)
	}
	s.holds(v, 0, 0, v.Size)
	if err := s.store.Unprovision(s.Context(), "1.0.new"); err != nil {
		s.Fatal(err)
	}
	v = s.provision(spec)
	s.fill(v, 0x62, 0, spec.Size)
	v, err := s.store.Rename(s.Context(), "1.0.new", "1.0")
	if err != nil || v.Raw {
		s.Fatalf("%+v %v", v, err)
	}
	v = s.provision(s.spec("1.0", 1))
	s.holds(v, 0x62, 0, spec.Size)
	s.holds(v, 0, spec.Size, v.Size)
}
