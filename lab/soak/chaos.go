package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/blockd"
)

// process is the number of the data path's process.
func (s *soak) process() (int, error) {
	var status blockd.Status
	err := s.call("status", func(ctx context.Context) (err error) {
		status, err = s.client.Status(ctx)
		return err
	})
	return status.PID, err
}

// signal sends a signal to the process, if it is ours still, and waits until it has ended.
func (s *soak) signal(pid int, signal unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // ended meanwhile
	}
	defer unix.Close(fd)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || filepath.Base(exe) != filepath.Base(s.binary) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil {
		return nil
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if n, _ := unix.Poll(p, 100); n == 1 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end after %v", pid, signal)
}

// kill ends the process at random moments, most often with no chance to do anything.
func (s *soak) kill() {
	r := s.random(3)
	for s.sleep(time.Second); !s.ended() && !s.calm.Load(); s.sleep(time.Duration(300+r.IntN(6000)) * time.Millisecond) {
		pid, err := s.process()
		if err != nil {
			s.fail(err)
			return
		}
		signal, count := unix.SIGKILL, &s.counts.killed
		if r.IntN(5) < 2 {
			signal, count = unix.SIGTERM, &s.counts.asked
		}
		if err := s.signal(pid, signal); err != nil {
			s.fail(err)
			return
		}
		count.Add(1)
	}
}

// loseRepository has it disappear for a second.
func (s *soak) loseRepository() {
	r := s.random(4)
	for s.sleep(2 * time.Second); !s.ended(); s.sleep(time.Duration(2000+r.IntN(8000)) * time.Millisecond) {
		s.here.Lock()
		err := os.Rename(s.path("repository"), s.path("elsewhere"))
		if err == nil {
			for end := time.Now().Add(time.Duration(500+r.IntN(1000)) * time.Millisecond); time.Now().Before(end); s.sleep(10 * time.Millisecond) {
				s.lastAway.Store(time.Now().UnixNano())
				if s.ended() {
					break
				}
			}
			err = os.Rename(s.path("elsewhere"), s.path("repository"))
			s.lastAway.Store(time.Now().UnixNano())
		}
		s.here.Unlock()
		if err != nil {
			s.fail(err)
			return
		}
		s.counts.away.Add(1)
	}
}
