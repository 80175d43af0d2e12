package kernelcachetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/internal/command"
	"hayloft/internal/dm"
)

// foreign is what is not ours: refused, and left as it is.
func foreign(s *suite) {
	spec, model := s.pair("7.0", s.driver.Modes()[0])
	// A file system's beginning on the local volume.
	content := pattern(77, 1<<20)
	if err := write(spec.Local, 0, content); err != nil {
		s.Fatal(err)
	}
	_, err := s.driver.Attach(s.Context(), spec)
	s.fails(err, fault.Busy, "foreign content on the local volume")
	s.fails(s.driver.Detach(s.Context(), spec), fault.Busy, "detach of foreign content")
	s.shows(spec.Local, 0, content, "foreign content")
	s.list()
	sh(s.T, "blkdiscard -z "+spec.Local)

	// Mapped devices with our names.
	tools := dm.Tools{Runner: command.Exec{}}
	for _, name := range s.Mapped(spec) {
		if err := tools.Create(s.Context(), name, "SOMEBODY-1", fmt.Sprintf("0 %d linear %s 0", sourceSize/dm.SectorSize, spec.Source)); err != nil {
			s.Fatal(err)
		}
		_, err := s.driver.Attach(s.Context(), spec)
		s.fails(err, fault.Busy, "mapped device "+name+" of somebody else")
		s.fails(s.driver.Detach(s.Context(), spec), fault.Busy, "detach beside mapped device "+name+" of somebody else")
		if there, err := tools.Info(s.Context(), name); err != nil || there.UUID != "SOMEBODY-1" {
			s.Errorf("foreign device became %+v, %v", there, err)
		}
		s.list()
		sh(s.T, "dmsetup remove --retry "+name)
	}

	// The local volume of another machine's disk; another source.
	other := spec
	other.Name = "9.0"
	s.attach(spec)
	_, err = s.driver.Attach(s.Context(), other)
	s.fails(err, fault.Busy, "local volume of another cache")
	s.fails(s.driver.Detach(s.Context(), other), fault.Busy, "detach by another name")
	s.list(spec.Name)
	s.shows(s.status(spec).Device, 0, model, "after the foreigners")
	s.flush(spec)
	s.detach(spec)
}

// hostEnds is a cache that the kernel has no more, as after a reboot.
func hostEnds(s *suite) {
	for _, mode := range []cache.Mode{cache.Through, cache.Back} {
		s.Run(string(mode), func(t *testing.T) {
			one := *s
			one.T = t
			hostEndsIn(&one, mode)
		})
	}
}

func hostEndsIn(s *suite, mode cache.Mode) {
	spec, model := s.pair("7.0", mode)
	device := s.attach(spec).Device
	s.write(device, model, 1<<20, pattern(50, 1<<20))
	if mode != cache.Back {
		s.Leave(s.T, spec)
		s.list()
		// It ran elsewhere meanwhile.
		s.write(spec.Source, model, 1<<20, pattern(51, 1<<20))
		s.driver = s.Open(s.T, nil)
		s.shows(s.attach(spec).Device, 0, model, "source changed while the host was down")
		s.Leave(s.T, spec)
		s.detach(spec)
		return
	}
	s.dirty(spec, device, model)
	s.Leave(s.T, spec)
	s.list()
	s.driver = s.Open(s.T, nil)
	s.fails(s.driver.Detach(s.Context(), spec), fault.WrongState, "detach of what may be dirty")
	s.fails(s.driver.Flush(s.Context(), spec, nil), fault.WrongState, "flush of what is not attached")
	for _, other := range s.driver.Modes() {
		if other == mode {
			continue
		}
		wrong := spec
		wrong.Mode = other
		_, err := s.driver.Attach(s.Context(), wrong)
		s.fails(err, fault.Busy, "attached in mode "+string(other)+" after BACK")
	}
	status := s.attach(spec)
	s.shows(status.Device, 0, model, "after the host came back")
	s.write(status.Device, model, 13<<18, pattern(52, 128<<10))
	s.flush(spec)
	s.shows(spec.Source, 0, model, "source after the host came back")
	s.Leave(s.T, spec) // flushed, and not detached
	s.attach(spec)
	s.shows(status.Device, 0, model, "after the host came back again")
	s.flush(spec)
	s.detach(spec)
}

// sourceFails: errors are seen as such, in time, and nothing is lost by them.
func sourceFails(s *suite) {
	const bad = dirtyAt // from here on
	for _, mode := range []cache.Mode{cache.Through, cache.Back} {
		s.Run(string(mode), func(t *testing.T) {
			one := *s
			one.T = t
			sourceFailsIn(&one, mode, bad)
		})
	}
}

// nobodyLooks is behind bad, where udev's blkid reads nothing: what it reads several times, such as the block at 3.5 MiB of these
// disks for the metadata of RAID cards, a cache may have.
const nobodyLooks = 13 << 18

func sourceFailsIn(s *suite, mode cache.Mode, bad int64) {
	spec, model := s.pair("7.0", mode)
	device := s.attach(spec).Device
	if mode == cache.Back {
		s.dirty(spec, device, model)
	}
	whole := sh(s.T, "dmsetup table "+spec.Source)
	var from, sectors, at int64
	var disk string
	if _, err := fmt.Sscanf(whole, "%d %d linear %s %d", &from, &sectors, &disk, &at); err != nil {
		s.Fatalf("%q: %v", whole, err)
	}
	change := func(table string) {
		sh(s.T, "dmsetup suspend --nolockfs --noflush "+spec.Source+"; dmsetup load "+spec.Source+" --table '"+table+"'; dmsetup resume "+spec.Source)
	}
	change(fmt.Sprintf("0 %d linear %s %d\n%d %d error", bad/512, disk, at, bad/512, sectors-bad/512))
	healed := false
	heal := func() {
		if !healed {
			healed = true
			change(whole)
		}
	}
	defer heal()
	began := time.Now()
	if _, err := read(device, nobodyLooks, 64<<10); err == nil {
		s.Error("what the source cannot give is read")
	}
	s.shows(device, 0, model[:64<<10], "what the source can give")
	if mode == cache.Back {
		ctx, cancel := context.WithTimeout(s.Context(), endless)
		defer cancel()
		if now, err := s.driver.Status(ctx, spec); err == nil && now.Dirty > 0 {
			err := s.driver.Flush(ctx, spec, nil)
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				s.Errorf("flush to a source that fails: %v", err)
			}
			s.Logf("flush to a source that fails: %v", err)
		} else {
			s.Logf("before the flush: %+v, %v", now, err)
		}
	} else if err := write(device, nobodyLooks, pattern(60, 64<<10)); err == nil {
		s.Error("what the source cannot take is written")
	}
	s.Logf("errors after %.1f s", time.Since(began).Seconds())
	heal()
	s.write(s.attach(spec).Device, model, nobodyLooks, pattern(61, 64<<10))
	s.flush(spec)
	s.shows(spec.Source, 0, model, "source after it was well again")
	s.detach(spec)
}

// failing lets some programs run, and then none that changes anything, until it is told to heal.
type failing struct {
	command.Exec
	left   int
	done   bool // the one that fails has run
	failed bool
}

var errFailing = errors.New("the suite has it fail")

func (f *failing) Run(ctx context.Context, c command.Cmd) ([]byte, error) {
	changes := c.Name != "modprobe" && len(c.Args) > 0 && c.Args[0] != "info" && c.Args[0] != "status" && c.Args[0] != "table" && c.Args[0] != "targets"
	if !changes {
		return f.Exec.Run(ctx, c)
	}
	if f.left--; f.left < 0 {
		if f.done && !f.failed {
			_, _ = f.Exec.Run(ctx, c)
		}
		f.failed = true
		return nil, errFailing
	}
	return f.Exec.Run(ctx, c)
}

// programsFail: wherever a program fails or is killed, from Attach to Detach, the next try gets through, and nothing is lost.
func programsFail(s *suite) {
	mode := s.driver.Modes()[len(s.driver.Modes())-1]
	spec, model := s.pair("7.0", mode)
	for left := 0; ; left += 2 {
		run := &failing{left: left, done: left%4 == 0}
		driver := s.Open(s.T, run)
		data := pattern(2000+left, 128<<10)
		err := func() error {
			status, err := driver.Attach(s.Context(), spec)
			if err != nil {
				return err
			}
			s.write(status.Device, model, 1<<20, data)
			if err := driver.Flush(s.Context(), spec, nil); err != nil {
				return err
			}
			return driver.Detach(s.Context(), spec)
		}()
		if !run.failed {
			if err != nil || left < 2 {
				s.Errorf("after %d programs: %v", left, err)
			}
			return
		}
		if err == nil {
			s.Errorf("program %d failed, and nobody said so", left)
		}
		s.shows(s.attach(spec).Device, 0, model, "after a program failed")
		s.flush(spec)
		s.shows(spec.Source, 0, model, "source after a program failed")
		if left%4 != 0 {
			s.detach(spec)
		}
	}
}
