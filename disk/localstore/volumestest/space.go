package volumestest

import (
	"context"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
)

func most(s suite) {
	limited := s.Open(s.t, 4*s.Unit)
	s.store = limited
	if c, err := limited.Capacity(s.Context()); err != nil || c.Total != 4*s.Unit || c.Free != 4*s.Unit || c.Used != 0 {
		s.Fatalf("%+v %v", c, err)
	}
	s.provision(s.spec("1.0", 3))
	_, err := limited.Provision(s.Context(), s.spec("2.0", 2))
	refusal(s, err, fault.OutOfSpace, "2.0", "LS_MAX")
	_, err = limited.Provision(s.Context(), s.spec("1.0", 5))
	refusal(s, err, fault.OutOfSpace, "1.0", "LS_MAX")
	s.provision(s.spec("2.0", 1))
	if c, err := limited.Capacity(s.Context()); err != nil || c.Free != 0 || c.Used != 4*s.Unit {
		s.Errorf("%+v %v", c, err)
	}
	if err := limited.Unprovision(s.Context(), "1.0"); err != nil {
		s.Fatal(err)
	}
	s.provision(s.spec("2.0", 4))
}

func mostOfTwo(s suite) {
	two := []localstore.Volumes{s.Open(s.t, 3*s.Unit), s.Open(s.t, 3*s.Unit)}
	s.store = two[0]
	var other atomic.Int32
	well, _ := parallel(6, func(i int) error {
		_, err := two[i%2].Provision(s.Context(), s.spec(name(i), 1))
		if err != nil && !fault.Is(err, fault.OutOfSpace) {
			other.Add(1)
			s.Error(err)
		}
		return err
	})
	if well != 3 || other.Load() != 0 || len(s.list()) != 3 {
		s.Errorf("%d got space for 3; there is %s", well, s.names())
	}
}

func full(s suite) {
	before := s.free()
	_, err := s.store.Provision(s.Context(), s.spec("1.0", int64(s.Units)*4))
	refusal(s, err, fault.OutOfSpace, "1.0", "needs", "free")
	if got := s.names(); got != "" {
		s.Errorf("left behind: %s", got)
	}
	if free := s.free(); free < before {
		s.Errorf("%d bytes are gone", before-free)
	}
	if _, err := s.store.Find(s.Context(), "1.0"); !fault.Is(err, fault.NotFound) {
		s.Error(err)
	}
	s.provision(s.spec("1.0", 1))
	_, err = s.store.Provision(s.Context(), s.spec("1.0", int64(s.Units)*4))
	refusal(s, err, fault.OutOfSpace, "1.0", "needs", "free")
	if v := s.provision(s.spec("1.0", 1)); v.Size != s.Unit {
		s.Errorf("%+v", v)
	}
}

func crowd(s suite) {
	n := s.Crowd
	size := min(s.Unit, int64(s.Units)*s.Unit/int64(n))
	if well, err := parallel(n, func(i int) error {
		v, err := s.store.Provision(s.Context(), sized(name(i), size))
		if err == nil && (v.Size < size || v.Path == "") {
			s.Errorf("%+v", v)
		}
		return err
	}); well != n {
		s.Fatalf("%d of %d: %v", well, n, err)
	}
	paths := map[string]bool{}
	for _, v := range s.list() {
		paths[v.Path] = true
	}
	if len(paths) != n {
		s.Errorf("%d volumes", len(paths))
	}
	if well, err := parallel(n, func(i int) error { return s.store.Unprovision(s.Context(), name(i)) }); well != n {
		s.Fatalf("%d of %d removed: %v", well, n, err)
	}
	if got := s.names(); got != "" {
		s.Errorf("left: %s", got)
	}
}

func sameName(s suite) {
	two := []localstore.Volumes{s.store, s.Open(s.t, 0)}
	if well, err := parallel(4, func(i int) error {
		_, err := two[i%2].Provision(s.Context(), s.spec("1.0", 1))
		return err
	}); well != 4 {
		s.Fatal(err)
	}
	if got := s.names(); got != "1.0" {
		s.Error(got)
	}
	v := s.provision(s.spec("1.0", 1))
	s.holds(v, 0, 0, v.Size)
}

func ended(s suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.store.Provision(ctx, s.spec("1.0", 1)); err == nil {
		s.Error("provisioned in a context that has ended")
	}
	if got := s.names(); got != "" {
		s.Errorf("left: %s", got)
	}
}
