package system

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/server/api"
)

// large is the bytes of an image that a crowded store has no room for.
const large = 10 << 20

// storeMB is the size of the local store that bad things happen to.
const storeMB = 24

// astray is a product with a small local store and a QEMU that fails when it is told to.
type astray struct {
	*product
	store  string
	broken string // a file; while it is there, QEMU dies at once
}

func beginAstray(t *testing.T) *astray {
	a := &astray{}
	a.product = begin(t, func(p *product) []string {
		a.product = p
		a.store, a.broken = filepath.Join(p.site.Dir, "ls"), filepath.Join(p.wrappers(), "broken")
		real, err := exec.LookPath("qemu-system-x86_64")
		if err == nil {
			err = os.MkdirAll(p.wrappers(), 0o755)
		}
		if err == nil {
			script := fmt.Sprintf("#!/bin/sh\nif [ -e %s ]; then echo 'qemu: the moon is in the wrong phase' >&2; exit 1; fi\nexec %s \"$@\"\n", a.broken, real)
			err = os.WriteFile(filepath.Join(p.wrappers(), "qemu-system-x86_64"), []byte(script), 0o755)
		}
		if err == nil {
			err = os.Mkdir(a.store, 0o755)
		}
		if err == nil {
			err = unix.Mount("tmpfs", a.store, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", storeMB))
		}
		if err != nil {
			t.Fatal(err)
		}
		return []string{"--ls-path", a.store}
	})
	a.network()
	a.sectorImage()
	return a
}

// files lists everything in the datastores and the local store, with sizes.
func (a *astray) files() []string {
	a.Helper()
	var list []string
	for _, root := range []string{filepath.Join(a.stateDir(), "server", "datastores"), a.store, filepath.Join(a.agentDir(), "machines")} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if path != root && errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			if err != nil || e.IsDir() {
				return err
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), localstore.PartialFile)); err == nil {
				return nil // what was verified of a base stays, counted, until somebody needs the space
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			size := info.Size()
			if e.Name() == "console.log" {
				size = 0 // a machine that runs may talk
			}
			list = append(list, fmt.Sprintf("%s %d", path, size))
			return nil
		})
		if err != nil {
			a.Fatal(err)
		}
	}
	return list
}

// asBefore checks that no file has come since; bases that nobody uses may have made room.
func (a *astray) asBefore(what string, before []string) {
	a.Helper()
	a.eventually(what+" leaves nothing", func() error {
		for _, file := range a.files() {
			if !slices.Contains(before, file) {
				return fmt.Errorf("left: %s", file)
			}
		}
		return nil
	})
}

// fails waits until a machine is in the failure, and checks its message in the API and in `vm show`.
func (a *astray) fails(id int, state string, words ...string) {
	a.Helper()
	var vm api.VM
	a.eventually(state, func() (err error) {
		if vm, err = a.client.VM(a.ctx, id); err == nil && vm.StateName != state {
			err = fmt.Errorf("vm %d is %s: %s %s", id, vm.StateName, vm.Error, vm.SchedMessage)
		}
		return err
	})
	a.says(fmt.Sprintf("the error of vm %d", id), vm.Error, words...)
	shown := strings.Join(strings.Fields(a.must("vm", "show", strconv.Itoa(id))), " ")
	a.says("vm show", shown, append(words, state)...)
}

func (a *astray) gone(id int) {
	a.Helper()
	a.act(id, "terminate-hard")
	a.reaches(id, "DONE")
}

// noise is n bytes that do not compress, behind a boot sector.
func noise(n int) []byte {
	content := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content) // never fails, by its documentation
	copy(content, sector()[:512])
	return content
}

// machine is the text of a machine with a disk of an image.
func (a *astray) machine(image string) string {
	return strings.ReplaceAll(a.sectorText(), "IMAGE=sector", fmt.Sprintf("IMAGE=%q", image))
}

func TestBadImagesAreRefused(t *testing.T) {
	a := beginAstray(t)
	set, err := images()
	if err != nil {
		t.Fatal(err)
	}
	tarball, err := os.ReadFile(set.Tar)
	if err != nil {
		t.Fatal(err)
	}
	qcow := a.qcow2()
	flipped := slices.Clone(tarball)
	for i := len(flipped) / 2; i < len(flipped)/2+64; i++ {
		flipped[i] ^= 0xff
	}
	wild := slices.Clone(qcow)
	table := binary.BigEndian.Uint64(wild[40:48]) // of the first level (qcow2, "Header")
	binary.BigEndian.PutUint64(wild[table:], 1<<63|0x7ffffffffe00)
	before := a.files()
	for _, c := range []struct {
		name    string
		content []byte
		args    []string
		class   fault.Class
		words   []string
	}{
		{"mismatch.img", sector(), []string{"--digest", "sha256:" + strings.Repeat("0", 64)}, fault.Corrupt, []string{"digest mismatch", "expected"}},
		{"nonsense-digest.img", sector(), []string{"--digest", "sha256:zz"}, fault.Invalid, []string{"digest", "hexadecimal"}},
		{"truncated.qcow2", qcow[:len(qcow)/2], nil, fault.Corrupt, []string{"qcow2"}},
		{"corrupt.qcow2", wild, nil, fault.Corrupt, []string{"qcow2"}},
		{"truncated.tar.gz", tarball[:len(tarball)/2], nil, fault.Corrupt, []string{"truncated"}},
		{"corrupt.tar.gz", flipped, nil, fault.Corrupt, []string{"archive"}},
		{"up.tar.gz", archive(t, tar.Header{Name: "../evil", Size: 4, Mode: 0o644}), nil, fault.Invalid, []string{"../evil"}},
		{"absolute.tar.gz", archive(t, tar.Header{Name: "/etc/evil", Size: 4, Mode: 0o644}), nil, fault.Invalid, []string{"/etc/evil"}},
		{"device.tar.gz", archive(t, tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o600}), nil, fault.Invalid, []string{"dev/sda", "device"}},
		{"empty.img", nil, nil, fault.Corrupt, []string{"empty"}},
		{"not-qcow.img", sector(), []string{"--format", "qcow2"}, fault.Invalid, []string{"raw", "not qcow2"}},
	} {
		path := a.file(c.name, c.content)
		name := "bad-" + c.name
		a.refused(c.class, append(c.words, name), append([]string{"image", "create", "--name", name, "--path", path}, c.args...)...)
		a.noImage(name)
		a.asBefore(c.name, before)
	}
	a.refused(fault.NotFound, []string{"missing", "/no/such/file"}, "image", "create", "--name", "missing", "--path", "/no/such/file")
	a.noImage("missing")
	a.refused(fault.Invalid, []string{"relative", "absolute"}, "image", "create", "--name", "relative", "--set", "PATH=relative.img")
	a.noImage("relative")
}

// qcow2 is a disk in that format with some content.
func (a *astray) qcow2() []byte {
	a.Helper()
	raw, path := a.file("noise.img", noise(1<<20)), filepath.Join(a.site.Dir, "files", "good.qcow2")
	if said, err := exec.Command("qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, path).CombinedOutput(); err != nil {
		a.Fatalf("qemu-img: %v: %s", err, said)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		a.Fatal(err)
	}
	return content
}

// noImage deletes an image whose import failed; there may be no READY one.
func (a *astray) noImage(name string) {
	a.Helper()
	image, err := a.client.Image(a.ctx, name)
	if fault.Is(err, fault.NotFound) {
		return
	}
	if err != nil {
		a.Fatal(err)
	}
	if image.State != cloud.ImageStateError {
		a.Errorf("image %s is %s", name, image.StateName)
	}
	a.must("image", "delete", name)
	a.eventually("image "+name+" goes", func() error {
		if _, err := a.client.Image(a.ctx, name); !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("it is there still: %w", err)
		}
		return nil
	})
}

func TestBadRequestsAreRefused(t *testing.T) {
	a := beginAstray(t)
	file := func(name, text string) string { return a.file(name, []byte(text)) }
	before := a.files()
	files := 0
	create := func(text string) []string {
		files++
		return []string{"vm", "create", "--file", file(fmt.Sprintf("vm-%d.tmpl", files), text)}
	}
	for _, c := range []struct {
		what  string
		class fault.Class
		words []string
		args  []string
	}{
		{"unknown image", fault.NotFound, []string{"unicorn"}, create(a.machine("unicorn"))},
		{"unknown network", fault.NotFound, []string{"nowhere"}, create(strings.ReplaceAll(a.sectorText(), "NETWORK=net", "NETWORK=nowhere"))},
		{"unknown template", fault.NotFound, []string{"nothing"}, []string{"vm", "create", "nothing"}},
		{"unknown machine", fault.NotFound, []string{"4711"}, []string{"vm", "show", "4711"}},
		{"unclosed vector", fault.Invalid, []string{"line 4", "column"}, create("CPU=1\nMEMORY=16\nDISK=[IMAGE=sector\n")},
		{"no value", fault.Invalid, []string{"line 3", "column", "after MEMORY"}, create("CPU=1\nMEMORY\nDISK=[IMAGE=sector]\n")},
		{"no number", fault.Invalid, []string{"MEMORY", "lots"}, create("CPU=1\nMEMORY=lots\nDISK=[IMAGE=sector]\n")},
		{"slash in a machine's name", fault.Invalid, []string{"name", `a/b`, `contains "/"`}, append(create(a.sectorText()), "--name", "a/b")},
		{"newline in a machine's name", fault.Invalid, []string{"name", `a\nb`}, append(create(a.sectorText()), "--name", "a\nb")},
		{"slash in an image's name", fault.Invalid, []string{"name", `a/b`, `contains "/"`}, []string{"image", "create", "--name", "a/b", "--path", file("s.img", string(sector()))}},
		{"newline in an image's name", fault.Invalid, []string{"name", `a\nb`}, []string{"image", "create", "--name", "a\nb", "--path", file("s.img", string(sector()))}},
		{"slash in a template's name", fault.Invalid, []string{"name", `a/b`, `contains "/"`}, []string{"template", "create", "--file", file("t.tmpl", "NAME=\"a/b\"\n"+a.sectorText())}},
		{"slash in a network's name", fault.Invalid, []string{"name", `a/b`, `contains "/"`}, []string{"network", "create", "--file", file("n.tmpl", "NAME=\"a/b\"\nVN_MAD=bridge\nAR=[TYPE=IP4,IP=10.9.0.1,SIZE=4]\n")}},
	} {
		t.Run(c.what, func(t *testing.T) {
			outer := a.product.T
			defer func() { a.product.T = outer }()
			a.product.T = t
			a.refused(c.class, c.words, c.args...)
		})
	}
	vms, err := a.client.VMs(a.ctx, true)
	if err != nil || len(vms) > 0 {
		t.Errorf("%d machines were made, %v", len(vms), err)
	}
	list, err := a.client.Images(a.ctx)
	if err != nil || len(list) != 1 {
		t.Errorf("there are %d images, %v", len(list), err)
	}
	a.asBefore("bad requests", before)
	if n := a.leases(); n > 0 {
		t.Errorf("%d addresses are given out", n)
	}
}

func TestMachinesThatFitNowhereWait(t *testing.T) {
	a := beginAstray(t)
	for _, c := range []struct{ text, word string }{
		{strings.ReplaceAll(a.sectorText(), "MEMORY=16", "MEMORY=100000000"), "MB of memory free, 100000000 needed"},
		{strings.ReplaceAll(a.sectorText(), "CPU=0.03", "CPU=4000"), "4000.00 needed"},
		{strings.ReplaceAll(a.sectorText(), "IMAGE=sector", "IMAGE=sector, SIZE=100000"), "MB of local disk free"},
	} {
		id := a.one(c.text)
		a.eventually("the scheduler says why", func() error {
			vm, err := a.client.VM(a.ctx, id)
			if err == nil && !strings.Contains(vm.SchedMessage, c.word) {
				err = fmt.Errorf("vm %d is %s: %q, nothing of %q", id, vm.StateName, vm.SchedMessage, c.word)
			}
			return err
		})
		vm := a.reaches(id, "PENDING")
		a.says("its message", vm.SchedMessage, "host "+hostName)
		shown := strings.Join(strings.Fields(a.must("vm", "show", strconv.Itoa(id))), " ")
		a.says("vm show", shown, c.word)
		a.gone(id)
	}
	a.nothingOnHost()
}

func TestTroubleWithRepositoryAndStore(t *testing.T) {
	a := beginAstray(t)
	standing := a.one(a.sectorText())
	a.reaches(standing, "RUNNING")
	a.prints(standing, "up\n")
	pid := a.qemus()[standing]

	// A base that went bad in the repository after it was registered.
	image := a.image(fmt.Sprintf("NAME=rotten PATH=%q", a.file("rotten.img", noise(4<<20))))
	before := a.files()
	datastore := filepath.Join(a.stateDir(), "server", "datastores", strconv.Itoa(cloud.DefaultDatastore))
	object := filepath.Join(datastore, fmt.Sprintf("image-%d", image))
	const spot = 3<<20 + 12345
	a.overwrite(object, spot, "rot")
	id := a.one(a.machine("rotten"))
	a.fails(id, "PROLOG_FAILURE", "rotten", "chunk", "digest")
	a.asBefore("a rotten base", before)
	a.overwrite(object, spot, string(noise(4 << 20)[spot:spot+3]))
	a.must("vm", "recover", strconv.Itoa(id), "--retry")
	a.reaches(id, "RUNNING")
	a.prints(id, "up\n")
	a.gone(id)

	// A repository that is not there for a while.
	a.image(fmt.Sprintf("NAME=away PATH=%q", a.file("away.img", noise(2<<20))))
	before = a.files()
	if err := os.Rename(datastore, datastore+".away"); err != nil {
		t.Fatal(err)
	}
	id = a.one(a.machine("away"))
	a.fails(id, "PROLOG_FAILURE", "away", "cannot be reached")
	second := a.one(a.machine("away"))
	a.fails(second, "PROLOG_FAILURE", "away", "cannot be reached")
	a.must("vm", "recover", strconv.Itoa(second), "--delete")
	a.reaches(second, "DONE")
	if err := os.Rename(datastore+".away", datastore); err != nil {
		t.Fatal(err)
	}
	a.asBefore("a repository that is away", before)
	a.must("vm", "recover", strconv.Itoa(id), "--failure")
	a.fails(id, "PROLOG_FAILURE")
	a.must("vm", "recover", strconv.Itoa(id), "--retry")
	a.reaches(id, "RUNNING")
	a.gone(id)

	// More than the local store holds: known before it begins, and found out in the middle.
	a.image(fmt.Sprintf("NAME=large PATH=%q", a.file("large.img", noise(large))))
	ballast := filepath.Join(a.store, "ballast")
	if err := os.WriteFile(ballast, noise(a.freeBytes()-3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before = a.files()
	id = a.create(api.CreateVMs{Text: a.machine("large"), Hold: true})[0]
	a.must("vm", "deploy", strconv.Itoa(id), hostName)
	a.fails(id, "PROLOG_FAILURE", "large", fmt.Sprintf("needs %d bytes on the local store", large), "are free")
	a.asBefore("a store that is too small", before)
	info, err := os.Stat(ballast)
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize()) // the machine's record and the content have room then, not its index
	if err := os.Truncate(ballast, (info.Size()-int64(large-a.freeBytes()))/page*page-page); err != nil {
		t.Fatal(err)
	}
	before = a.files()
	a.must("vm", "recover", strconv.Itoa(id), "--retry")
	a.fails(id, "PROLOG_FAILURE", "large", "no space left")
	a.asBefore("a full store", before)
	if now := a.qemus()[standing]; !slices.Equal(now, pid) {
		t.Errorf("the machine that ran was process %v, and is %v", pid, now)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	a.must("vm", "recover", strconv.Itoa(id), "--retry")
	a.reaches(id, "RUNNING")
	a.gone(id)
	a.gone(standing)
	a.nothingOnHost()
}

// overwrite changes some bytes of a file.
func (a *astray) overwrite(path string, offset int64, text string) {
	a.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(text), offset)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		a.Fatal(err)
	}
}

// freeBytes is how much room the local store has.
func (a *astray) freeBytes() int {
	a.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(a.store, &st); err != nil {
		a.Fatal(err)
	}
	return int(st.Bavail) * int(st.Bsize)
}

func TestMachinesThatDoNotComeUp(t *testing.T) {
	a := beginAstray(t)
	if err := os.WriteFile(a.broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	id := a.one(a.sectorText())
	a.fails(id, "BOOT_FAILURE", "the moon is in the wrong phase")
	if left := a.taps(); len(left) > 0 {
		t.Errorf("taps of a machine whose QEMU died: %v", left)
	}
	if err := os.Remove(a.broken); err != nil {
		t.Fatal(err)
	}
	a.must("vm", "recover", strconv.Itoa(id), "--retry")
	a.reaches(id, "RUNNING")
	a.gone(id)

	a.image("NAME=blank TYPE=OS SIZE=1")
	id = a.one(a.machine("blank"))
	a.reaches(id, "RUNNING")
	a.prints(id, "bootable device")
	a.eventually("vm wait says why it does not answer", func() error { // the console is told of when it can be read in seconds
		status, _, said := a.cli("vm", "wait", strconv.Itoa(id), "--for", "ssh", "--timeout", "3s")
		if status != fault.Unavailable.ExitStatus() {
			a.Fatalf("vm wait: exit status %d: %s", status, said)
		}
		if words := []string{"vm " + strconv.Itoa(id), "SSH", "console", "bootable device"}; !containsAll(said, words...) {
			return fmt.Errorf("vm wait: %s, and not %q", said, words)
		}
		return nil
	})
	if vm := a.reaches(id, "RUNNING"); vm.Error != "" {
		t.Errorf("its error is %q", vm.Error)
	}
	a.gone(id)
	a.nothingOnHost()
}
