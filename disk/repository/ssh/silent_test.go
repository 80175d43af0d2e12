package ssh

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/remote"
	"hayloft/lab/sshlab"
)

// life is what a machine does with a persistent image, while another image is read.
func life(ctx context.Context, r *Repository, name string, owner repository.Owner) error {
	step := func(what string, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	src, err := r.Open(ctx, "base")
	if err != nil {
		return step("open", err)
	}
	defer src.Close()
	if _, err := src.ReadAt(make([]byte, 64<<10), 0); err != nil {
		return step("read", err)
	}
	if _, err := r.Own(ctx, name, owner, 0, 0); err != nil {
		return step("own", err)
	}
	target, mark, err := r.OpenTarget(ctx, name, owner)
	if err != nil {
		return step("open target", err)
	}
	if err := step("undrained", r.SetUndrained(ctx, name, owner, mark.Generation, true)); err != nil {
		target.Close()
		return err
	}
	_, err = target.WriteAt([]byte("written"), 0)
	if err == nil {
		err = target.Sync()
	}
	if err = step("write", err); err != nil {
		target.Close()
		return err
	}
	if err := step("drained", r.SetUndrained(ctx, name, owner, mark.Generation, false)); err != nil {
		target.Close()
		return err
	}
	if err := step("close", target.Close()); err != nil {
		return err
	}
	return step("disown", r.Disown(ctx, name, owner))
}

// within fails the test when f has not ended after a time in which anything has.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience + time.Minute):
		t.Errorf("%s: does not end", what) // not Fatalf: f may be called beside the test
	}
}

// TestLineThatFallsSilent: wherever a line stops without a word, what uses it ends with an error that names the host, goes on
// when the line does in time, and is of use afterwards.
func TestLineThatFallsSilent(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	put(t, open(t, s, dir), "base", noise(64<<10))
	owner := repository.Owner{Host: "here", Machine: 1}
	line := newRelay(t, strings.TrimPrefix(s.Host, "root@"))
	whole := open(t, s, dir)
	put(t, whole, "measured", noise(1000))
	line.goOn()
	if err := life(t.Context(), line.through(t, s, dir, patience), "measured", owner); err != nil {
		t.Fatal(err)
	}
	total := line.bytes()
	const points = 24
	var group sync.WaitGroup
	defer group.Wait()
	slots := make(chan struct{}, 6)
	var failed atomic.Int32
	for i := range points {
		name := fmt.Sprintf("image%d", i)
		put(t, whole, name, noise(1000))
		line := newRelay(t, strings.TrimPrefix(s.Host, "root@"))
		r := line.through(t, s, dir, 4*time.Second)
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			line.stopAfter(total*i/points + 1)
			shortly := i%3 == 2 // it goes on before anybody has given up
			within(t, name, func() {
				if shortly {
					ended := make(chan error, 1)
					go func() { ended <- life(t.Context(), r, name, owner) }()
					for !line.stands() {
						select {
						case err := <-ended:
							ended <- err
							line.goOn()
						default:
							time.Sleep(time.Millisecond)
							continue
						}
						break
					}
					line.goOn()
					if err := <-ended; err != nil && !fault.Is(err, fault.Unavailable) {
						t.Errorf("after %d bytes of %d, for a moment: %v", total*i/points+1, total, err)
					}
					return
				}
				err := life(t.Context(), r, name, owner)
				if err == nil { // it took fewer bytes this time
					return
				}
				failed.Add(1)
				if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "datastore 7 (root@"+line.host()) {
					t.Errorf("after %d bytes of %d: %v", total*i/points+1, total, err)
				}
			})
			line.hangUp() // the server has its lost connections end
			line.goOn()
			within(t, name+" afterwards", func() {
				var err error
				for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
					if err = life(t.Context(), r, name, owner); err == nil {
						return
					}
				}
				t.Errorf("after %d bytes of %d, afterwards: %v", total*i/points+1, total, err)
			})
		})
	}
	group.Wait()
	if failed.Load() < points/3 {
		t.Errorf("%d of %d lines that fell silent were noticed", failed.Load(), points)
	}
	eventually(t, "tidiness", func() bool { // the server may yet start what came over a line that was hung up
		left := files(t, dir)
		return !strings.Contains(left, ".lock") && !strings.Contains(left, ".owner") && !strings.Contains(left, ".part")
	})
}

// TestTakenInSpiteOfALoss: an image is taken though the connection ends on the way, wherever that is.
func TestTakenInSpiteOfALoss(t *testing.T) {
	s := sshlab.Start(t)
	dir := t.TempDir()
	owner := repository.Owner{Host: "here", Machine: 1}
	line := newRelay(t, strings.TrimPrefix(s.Host, "root@"))
	r := line.through(t, s, dir, patience) // each loss is seen, none is waited for
	put(t, r, "measured", noise(1000))
	line.goOn()
	if _, err := r.Own(t.Context(), "measured", owner, 0, 0); err != nil {
		t.Fatal(err)
	}
	total := line.bytes()
	const points = 8
	for i := range points {
		name := fmt.Sprintf("image%d", i)
		put(t, r, name, noise(1000))
		line.stopAfter(total*i/points + 1)
		ended := make(chan error, 1)
		go func() {
			_, err := r.Own(t.Context(), name, owner, 0, 0)
			ended <- err
		}()
		eventually(t, "the end of the line", line.stands)
		line.hangUp()
		line.goOn()
		if err := <-ended; err != nil {
			t.Errorf("after %d bytes of %d: %v", total*i/points+1, total, err)
		}
		if _, err := r.Marked(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

// TestFewSessions: an sshd that allows two sessions on a connection is enough, and one that allows one says so.
func TestFewSessions(t *testing.T) {
	owner := repository.Owner{Host: "here", Machine: 1}
	for _, sessions := range []string{"1", "2", "3"} {
		t.Run(sessions, func(t *testing.T) {
			s := sshlab.Start(t, "MaxSessions "+sessions)
			r := open(t, s, t.TempDir())
			put(t, r, "base", noise(64<<10))
			put(t, r, "data", noise(1000))
			within(t, "life", func() {
				err := life(t.Context(), r, "data", owner)
				if sessions == "1" {
					class(t, "one session", err, fault.Unavailable, s.Host, "MaxSessions")
				} else if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestManyComeAtOnce: an sshd that hangs up because others are about to log in is asked again.
func TestManyComeAtOnce(t *testing.T) {
	s := sshlab.Start(t, "MaxStartups 1")
	dir := t.TempDir()
	put(t, open(t, s, dir), "base", noise(64<<10))
	other, err := net.Dial("tcp", strings.TrimPrefix(s.Host, "root@"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Read(make([]byte, 1)); err != nil { // sshd has taken it
		t.Fatal(err)
	}
	r, err := Connect(disk.Repository{ID: 7, Path: dir}, remote.Config{Address: s.Host, KeyFile: s.KeyFile, KnownHostsFile: s.KnownHostsFile,
		ConnectLimit: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		_, err := r.Stat(t.Context(), "base")
		done <- err
	}()
	eventually(t, "a connection that is dropped", func() bool { return strings.Contains(s.Log(), "MaxStartups") })
	other.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestReadersWaitForASync: while the storage is at work to make something durable, others of the same connection are not
// taken for forgotten.
func TestReadersWaitForASync(t *testing.T) {
	s := sshlab.Start(t)
	r := open(t, s, t.TempDir())
	put(t, r, "base", noise(64<<10))
	r.limits = limits{answer: 200 * time.Millisecond, mark: patience, commit: patience}
	l, release, err := r.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	l.syncing.Add(1)
	done := make(chan error, 1)
	s.StopConnections() // as a server that syncs: nothing is answered
	go func() {
		_, err := r.Stat(t.Context(), "base")
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("given up: %v", err)
	case <-time.After(time.Second):
	}
	s.Continue()
	if err := <-done; err != nil {
		t.Error(err)
	}
	l.syncing.Add(-1)
}
