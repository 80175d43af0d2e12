package system

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/path"
	"hayloft/lab/golden"
	"hayloft/server/api"
)

// shared is a datastore of a test's own that can go away, as a file server does.
type shared struct {
	*life
	dir string
}

func (l *life) share(name, defaults string) *shared {
	l.Helper()
	dir := filepath.Join(l.site.Dir, name)
	if err := os.Mkdir(dir, 0o711); err != nil {
		l.Fatal(err)
	}
	if _, err := l.client.CreateDatastore(l.ctx, fmt.Sprintf("NAME=%s BASE_PATH=%q\n%s", name, dir, defaults), ""); err != nil {
		l.Fatal(err)
	}
	return &shared{l, dir}
}

func (s *shared) leave()    { s.move(s.dir, s.dir+".away") }
func (s *shared) comeBack() { s.move(s.dir+".away", s.dir) }

func (s *shared) move(from, to string) {
	s.Helper()
	if err := os.Rename(from, to); err != nil {
		s.Fatal(err)
	}
}

// sum is the digest of the first megabytes of an image in the datastore.
func (s *shared) sum(image api.Image, megabytes int) string {
	s.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, image.Source))
	if err != nil {
		s.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content[:megabytes<<20]))
}

// writes has a machine write random megabytes to its second disk, durably, and returns the digest of all up to there.
func (l *life) writes(id, at, megabytes int) string {
	l.Helper()
	l.ssh(id, fmt.Sprintf("dd if=/dev/urandom of=/dev/vdb bs=1M seek=%d count=%d conv=notrunc,fsync 2>/dev/null", at, megabytes))
	return l.reads(id, at+megabytes)
}

// reads is the digest of the first megabytes of a machine's second disk, read from the disk itself.
func (l *life) reads(id, megabytes int) string {
	l.Helper()
	return l.sumOf(id, "vdb", megabytes)
}

// sumOf is the digest of the first megabytes of a machine's disk, read from the disk itself.
func (l *life) sumOf(id int, device string, megabytes int) string {
	l.Helper()
	text := l.ssh(id, fmt.Sprintf("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/%s bs=1M count=%d 2>/dev/null | sha256sum", device, megabytes))
	sum, _, _ := strings.Cut(text, " ")
	return sum
}

// blockd finds the processes of the product's data path.
func (p *product) blockd() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline")
		words := bytes.Split(line, []byte{0})
		if len(words) > 2 && string(words[1]) == "blockd" && bytes.Contains(line, []byte(p.agentDir())) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// cache is what `vm show` tells of a disk.
func (l *life) cache(id, disk int) api.Cache {
	l.Helper()
	vm, err := l.client.VM(l.ctx, id)
	if err != nil {
		l.Fatal(err)
	}
	for _, c := range vm.Caches {
		if c.Disk == disk {
			return c
		}
	}
	l.Fatalf("vm %d says nothing of the cache of disk %d: %+v", id, disk, vm.Caches)
	return api.Cache{}
}

// withData is a machine with a second disk of the image data.
func (l *life) withData(mode string) string {
	text := l.kernelBoot("tiny", "pc", golden.CmdlinePC)
	return strings.Replace(text, "\nOS=", fmt.Sprintf("\nDISK=[IMAGE=data%s]\nOS=", mode), 1)
}

func (l *life) image1(name string) api.Image {
	l.Helper()
	image, err := l.client.Image(l.ctx, name)
	if err != nil {
		l.Fatal(err)
	}
	return image
}

// TestPersistentImageInACache leads a persistent image through BACK and OFFLINE: what a machine has written and flushed
// outlives agent, data path and an absent repository, and the next machine finds it.
func TestPersistentImageInACache(t *testing.T) {
	l := beginLife(t)
	s := l.share("shared", "CACHE_MODE=BACK")
	l.must("image", "create", "--name", "data", "--type", "DATABLOCK", "--size", "32", "--persistent", "-d", "shared")
	id := l.one(l.withData(""))
	name := strconv.Itoa(id)
	l.reaches(id, "RUNNING")
	l.expect("mode", l.reaches(id, "RUNNING").Disks[1].Mode, "BACK")

	// Neither the agent's nor the data path's end is noticed in the machine.
	wrote := l.writes(id, 0, 4)
	pids := append(l.blockd(), l.child(theAgent))
	if len(pids) != 2 {
		t.Fatalf("agent and data path: %v", pids)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	l.expect("read while they begin again", l.reads(id, 4), wrote)
	wrote = l.writes(id, 4, 4)
	l.eventually("the agent is there again", func() error {
		host, err := l.client.Host(l.ctx, hostName)
		if err == nil && !host.Connected {
			err = fmt.Errorf("host %s is not connected", host.Name)
		}
		return err
	})
	l.says("image show", l.must("image", "show", "data"), "OWNER", "vm "+name+" on host "+hostName)
	l.refused(fault.Busy, []string{"data", "vm " + name}, "image", "release", "data", "--accept-stale")
	l.refused(fault.WrongState, []string{"RUNNING"}, "vm", "disk-cache", name, "1", "--mode", "OFFLINE")

	// Powered off it has drained.
	l.must("vm", "poweroff", name, "--wait")
	l.expect("the image after poweroff", s.sum(l.image1("data"), 8), wrote)
	if c := l.cache(id, 1); c.Mode != "BACK" || c.Undrained != 0 {
		t.Errorf("after poweroff: %+v", c)
	}

	// OFFLINE it runs, is powered off and starts again without its repository.
	l.must("vm", "disk-cache", name, "1", "--mode", "offline")
	l.must("vm", "resume", name, "--wait")
	l.expect("read in another mode", l.reads(id, 8), wrote)
	s.leave()
	wrote = l.writes(id, 8, 2)
	l.must("vm", "poweroff", name, "--wait")
	if c := l.cache(id, 1); c.Undrained == 0 {
		t.Errorf("OFFLINE, after poweroff: %+v", c) // its copy goes back when it leaves the host
	}
	l.must("vm", "resume", name, "--wait")
	l.expect("read without the repository", l.reads(id, 10), wrote)
	s.comeBack()
	l.through(id, "terminate", "DONE")
	l.expect("the image after all", s.sum(l.image1("data"), 10), wrote)

	l.afterItsHostIsLost(s, wrote)
	l.nothingOnHost()
}

// afterItsHostIsLost has an image marked by a machine that nobody knows, and a machine that wants it.
func (l *life) afterItsHostIsLost(s *shared, wrote string) {
	l.Helper()
	image := l.image1("data")
	repo, err := path.New(disk.Repository{Path: s.dir})
	if err != nil {
		l.Fatal(err)
	}
	lost := repository.Owner{Host: "burnt", Machine: 4711}
	if _, err := repo.Own(l.ctx, image.Source, lost, 0, 0); err != nil {
		l.Fatal(err)
	}
	mark, err := repo.Marked(l.ctx, image.Source)
	if err == nil {
		err = repo.SetUndrained(l.ctx, image.Source, lost, mark.Generation, true)
	}
	if err != nil {
		l.Fatal(err)
	}
	id := l.one(l.withData(", CACHE_MODE=THRU"))
	name := strconv.Itoa(id)
	l.eventually("the owner is named", func() error {
		vm, err := l.client.VM(l.ctx, id)
		if err == nil && vm.StateName != "PROLOG_FAILURE" {
			err = fmt.Errorf("vm %d is %s", id, vm.StateName)
		}
		if err == nil {
			l.says("its error", vm.Error, "burnt", "4711", "hayloft image release")
		}
		return err
	})
	l.refused(fault.Busy, []string{"burnt", "4711", strconv.FormatUint(mark.Generation, 10), "--accept-stale"}, "image", "release", "data")
	l.must("image", "release", "data", "--accept-stale")
	l.must("vm", "recover", name, "--retry", "--wait")
	l.reaches(id, "RUNNING")
	l.expect("what the next machine reads", l.reads(id, 10), wrote)
	l.through(id, "terminate-hard", "DONE")
}

// TestLazyImage starts a machine on an image of which nothing is on the host, and brings the rest when it is asked for.
func TestLazyImage(t *testing.T) {
	l := beginLife(t)
	l.share("far", "CACHE_FILL=NO")
	l.must("image", "create", "--name", "lazy", "--path", l.set.Disk, "-d", "far")
	lazy := l.image1("lazy")
	id := l.one(l.kernelBoot("lazy", "pc", golden.CmdlinePC))
	l.reaches(id, "RUNNING")
	l.ssh(id, "echo written > /root/file && sync")
	held := func() (b api.Held) {
		t.Helper()
		l.eventually("the host tells of the image", func() error {
			host, err := l.client.Host(l.ctx, hostName)
			for _, b = range host.Held {
				if b.Digest == lazy.Digest {
					return err
				}
			}
			return fmt.Errorf("it holds %+v, %v", host.Held, err)
		})
		return b
	}
	l.eventually("what it booted from is told", func() error { // the host looks at itself now and then
		if b := held(); b.Complete || b.Present == 0 || b.Present >= b.Total {
			return fmt.Errorf("%+v", b)
		}
		return nil
	})
	l.must("image", "prefetch", "lazy", "--hosts", hostName, "--wait")
	l.says("image prefetches", l.must("image", "prefetches", "lazy"), hostName, "done")
	l.eventually("it is whole", func() error {
		if b := held(); !b.Complete {
			return fmt.Errorf("%+v", b)
		}
		return nil
	})
	l.expect("the machine goes on", l.ssh(id, "cat /root/file"), "written")
	other := l.one(l.kernelBoot("lazy", "pc", golden.CmdlinePC))
	l.reaches(other, "RUNNING")
	if vm := l.reaches(other, "RUNNING"); vm.Timing.ReadBytes > 1<<20 {
		t.Errorf("a machine on a whole image read %d bytes of the repository", vm.Timing.ReadBytes)
	}
	l.through(other, "terminate-hard", "DONE")
	l.through(id, "terminate", "DONE")
	l.nothingOnHost()
}
