package kernelcachetest

import (
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
)

// life is a cache from Attach to Detach, in each mode.
func life(s *suite) {
	for _, mode := range s.driver.Modes() {
		s.Run(string(mode), func(t *testing.T) {
			one := *s
			one.T = t
			lifeIn(&one, mode)
		})
	}
}

func lifeIn(s *suite, mode cache.Mode) {
	spec, model := s.pair("7.0", mode)
	_, err := s.driver.Status(s.Context(), spec)
	s.fails(err, fault.NotFound, "status of none")
	s.detach(spec)
	first := s.attach(spec)
	if first.Mode != mode || first.Size < localSize/2 || first.Size > localSize || first.Device == "" {
		s.Errorf("status %+v", first)
	}
	s.shows(first.Device, 0, model, "source seen through the cache")
	if again := s.attach(spec); again.Device != first.Device {
		s.Errorf("attached again as %s, not %s", again.Device, first.Device)
	}
	s.list(spec.Name)
	s.driver = s.Open(s.T, nil) // a new process

	s.write(first.Device, model, 64<<10, pattern(1, 192<<10)) // whole blocks
	s.write(first.Device, model, 512, pattern(2, 512))
	s.write(first.Device, model, 3<<20+512, pattern(3, 300<<10))
	for range 2 {
		s.shows(first.Device, 0, model, "read after written")
	}
	if mode == cache.Back {
		status := s.dirty(spec, first.Device, model)
		s.shows(first.Device, 0, model, "read while dirty")
		if status.Mode != mode || status.Cached < status.Dirty {
			s.Errorf("status %+v", status)
		}
		s.fails(s.driver.Detach(s.Context(), spec), fault.WrongState, "detach of what is dirty")
	} else {
		s.shows(spec.Source, 0, model, "source at once")
		if status := s.status(spec); status.Dirty != 0 {
			s.Errorf("dirty: %+v", status)
		}
	}
	var done, total int64
	err = s.driver.Flush(s.Context(), spec, func(d, of int64) {
		if d < done || d > of {
			s.Errorf("progress from %d to %d of %d", done, d, of)
		}
		done, total = d, of
	})
	if err != nil || done != total {
		s.Errorf("flush: %d of %d, %v", done, total, err)
	}
	s.shows(spec.Source, 0, model, "source after a flush")
	s.flush(spec)

	f, err := os.Open(first.Device)
	if err != nil {
		s.Fatal(err)
	}
	s.fails(s.driver.Detach(s.Context(), spec), fault.Busy, "detach of what is open")
	if err := f.Close(); err != nil {
		s.Error(err)
	}
	s.shows(first.Device, 0, model, "after a detach that was refused")
	s.detach(spec)
	s.detach(spec)
	s.list()
	if _, err := os.Stat(first.Device); err == nil {
		s.Errorf("%s is there yet", first.Device)
	}
	s.flush(spec) // nothing to do
	s.shows(spec.Source, 0, model, "source after detach")
	spec.Name = "8.0" // the local volume is nobody's
	status := s.attach(spec)
	if status.Cached > 1<<20 { // what looked at the device may have left something
		s.Errorf("a new cache has %d bytes", status.Cached)
	}
	s.shows(status.Device, 0, model, "through the next cache")
	s.flush(spec)
	s.detach(spec)
}

// modes are refused by name when the driver has not got them.
func modes(s *suite) {
	spec, _ := s.pair("7.0", "")
	for _, mode := range []cache.Mode{cache.None, cache.Around, cache.Through, cache.Back, cache.Offline} {
		if s.has(mode) {
			continue
		}
		spec.Mode = mode
		_, err := s.driver.Attach(s.Context(), spec)
		s.fails(err, fault.Unsupported, "mode "+string(mode))
		if err == nil || !strings.Contains(err.Error(), string(mode)) {
			s.Errorf("%v does not name mode %s", err, mode)
		}
	}
	s.list()
}

// owner: the device is its machine's, whatever udev thinks.
func owner(s *suite) {
	spec, model := s.pair("7.0", s.driver.Modes()[len(s.driver.Modes())-1])
	device := s.attach(spec).Device
	check := func(what string) {
		s.Helper()
		sh(s.T, "udevadm settle")
		var st unix.Stat_t
		if err := unix.Stat(device, &st); err != nil {
			s.Fatal(err)
		}
		if int(st.Uid) != spec.UID || int(st.Gid) != spec.GID || st.Mode&0o7777 != 0o600 {
			s.Errorf("%s: %s is %d:%d %o", what, device, st.Uid, st.Gid, st.Mode&0o7777)
		}
	}
	check("attached")
	sh(s.T, "udevadm trigger --settle --action=change --subsystem-match=block")
	check("after udev's change")
	s.write(device, model, 0, pattern(9, 4<<10))
	s.flush(spec)
	check("after a flush")
	spec.UID, spec.GID = 1000, 1001
	if again := s.attach(spec).Device; again != device {
		s.Errorf("device %s became %s", device, again)
	}
	check("attached for somebody else")
	s.flush(spec)
	s.detach(spec)
}

// several machines' caches at once.
func several(s *suite) {
	var all sync.WaitGroup
	mode := s.driver.Modes()[len(s.driver.Modes())-1]
	var specs []kernelcache.Spec
	for n := range pairs {
		spec, model := s.pair(named(n), mode)
		specs = append(specs, spec)
		all.Go(func() { s.oneOfSeveral(spec, model, n) })
	}
	all.Wait()
	s.list(named(0), named(1), named(2))
	for _, spec := range specs {
		all.Go(func() {
			if err := s.driver.Detach(s.Context(), spec); err != nil {
				s.Error(err)
			}
		})
	}
	all.Wait()
}

func (s *suite) oneOfSeveral(spec kernelcache.Spec, model []byte, n int) {
	status, err := s.driver.Attach(s.Context(), spec)
	if err != nil {
		s.Error(err)
		return
	}
	for i := range 3 {
		data := pattern(1000+10*n+i, 256<<10)
		if err := write(status.Device, int64(i)<<20, data); err != nil {
			s.Error(err)
		}
		copy(model[i<<20:], data)
	}
	s.shows(status.Device, 0, model, "one of several")
	if err := s.driver.Flush(s.Context(), spec, nil); err != nil {
		s.Error(err)
	}
	s.shows(spec.Source, 0, model, "source of one of several")
}
