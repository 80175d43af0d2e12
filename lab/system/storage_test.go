package system

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/lab/cephlab"
	"hayloft/lab/golden"
	"hayloft/lab/labtest"
	"hayloft/lab/s3lab"
	"hayloft/lab/sshlab"
	"hayloft/server/api"
)

// elsewhere is a datastore on a storage server.
type elsewhere struct {
	name, path string
	options    map[string]string // of its driver, which is its name
	more       map[string]string // further attributes
	mode       string            // CACHE_MODE of machines' disks
	data       string            // mode of a persistent image there; "": they are refused
	system     string            // BASE_PATH of a system datastore there
	depends    bool              // clones need their parents

	vm     int
	marker string   // what the machine wrote to its disk
	wrote  []string // digests of what it wrote to its persistent images
}

const dataMB, dataSizeMB = 2, 16

// storage is a product with the storage servers of all kinds.
type storage struct {
	*life
	sshd   *sshlab.Server
	s3     *s3lab.Server
	ceph   *cephlab.Cluster
	images string // directory with foreign formats
	places []*elsewhere
}

// beginStorage starts the servers first: they end when the product has.
func beginStorage(t *testing.T) *storage {
	t.Helper()
	labtest.Root(t, "sshd", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd", "qemu-img", "qemu-storage-daemon")
	relays := newRelays(t)
	s := &storage{sshd: sshlab.Start(t), images: t.TempDir()}
	var err error
	if s.s3, err = s3lab.Start(s3lab.Config{CertDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.s3.Close() })
	if s.ceph, err = cephlab.Start(t.Context(), cephlab.Config{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.ceph.Close() })
	keyring, err := s.ceph.CreateUser(t.Context(), "hayloft")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ceph.CreatePool(t.Context(), "system"); err != nil {
		t.Fatal(err)
	}
	s.life = beginLife(t)
	addresses := []string{s.sshd.Host[strings.Index(s.sshd.Host, "@")+1:], strings.TrimPrefix(s.s3.URL, "https://")}
	for _, address := range slices.Compact(slices.Sorted(slices.Values(append(addresses, s.cephAddresses()...)))) {
		relays.to(s.product, address)
	}
	secret := s.secretFile("s3.secret", "s3cret")
	s.places = []*elsewhere{
		{name: "ssh", path: t.TempDir(), options: s.sshd.Options(), more: map[string]string{"CACHE_FILL": "NO"}, mode: "AROUND", data: "BACK",
			system: t.TempDir()},
		{name: "s3", path: s.s3.Endpoint + "/golden", mode: "NONE", system: s.s3.Endpoint + "/system",
			options: map[string]string{"ACCESS_KEY_ID": "hay", "SECRET_KEY_FILE": secret, "CA_FILE": s.s3.CAFile}},
		{name: "rbd", path: "rbd", mode: "NONE", data: "THRU", depends: true, system: "system",
			options: map[string]string{"CEPH_CONF": s.ceph.Conf, "CEPH_USER": "hayloft", "CEPH_KEYRING": keyring}},
	}
	return s
}

var loopbackAddress = regexp.MustCompile(`127\.0\.0\.1:[1-9][0-9]*`)

// cephAddresses are those that clients connect to.
func (s *storage) cephAddresses() []string {
	s.Helper()
	var all []string
	for _, of := range []string{"mon", "osd", "mgr"} {
		text, err := s.ceph.Run(s.ctx, "ceph", of, "dump")
		if err != nil {
			s.Fatal(err)
		}
		all = append(all, loopbackAddress.FindAllString(text, -1)...)
	}
	return all
}

func (s *storage) secretFile(name, text string) string {
	s.Helper()
	path := filepath.Join(s.T.TempDir(), name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// foreign is a raw image in another format, in a directory of its own.
func (s *storage) foreign(raw, format string) (dir, name string) {
	s.Helper()
	dir, name = filepath.Join(s.images, format), "disk."+format
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	if said, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", format, raw, filepath.Join(dir, name)).CombinedOutput(); err != nil {
		s.Fatalf("qemu-img: %v: %s", err, said)
	}
	return dir, name
}

// datastore makes a datastore as a user does.
func (s *storage) datastore(e *elsewhere) {
	s.Helper()
	s.must(datastoreArgs(e.name, e.name, e.path, e.options, e.more)...)
}

func datastoreArgs(name, driver, path string, attributes ...map[string]string) []string {
	args := []string{"-q", "datastore", "create", "--name", name, "--driver", driver, "--path", path}
	for _, some := range attributes {
		for _, key := range slices.Sorted(maps.Keys(some)) {
			args = append(args, "--set", key+"="+some[key])
		}
	}
	return args
}

// machine is the text of a machine with a disk of each, IMAGE with what else is said of it.
func (l *life) machine(disks ...string) string {
	text := l.kernelBoot("?", "pc", golden.CmdlinePC)
	return strings.Replace(text, `DISK=[IMAGE="?"]`, "DISK=[IMAGE="+strings.Join(disks, "]\nDISK=[IMAGE=")+"]", 1)
}

// TestStorageElsewhere leads images through each kind of storage: made there from another format, booted from, written to in
// place, saved, cloned and deleted, and nothing is left there.
func TestStorageElsewhere(t *testing.T) {
	s := beginStorage(t)
	s.refusesDatastores()
	s.refusesStrangers()
	dir, name := s.foreign(s.set.Disk, "qcow2")
	qcow2 := filepath.Join(dir, name)
	for _, e := range s.places {
		s.datastore(e)
		s.must("image", "create", "--name", e.name, "--path", qcow2, "-d", e.name)
		disks := []string{e.name + ", CACHE_MODE=" + e.mode}
		if e.data != "" {
			for _, mode := range []string{e.data, "NONE"} {
				name := e.name + "-" + mode
				s.must("image", "create", "--name", name, "--type", "DATABLOCK", "--size", strconv.Itoa(dataSizeMB), "--persistent", "-d", e.name)
				disks = append(disks, name+", CACHE_MODE="+mode)
			}
		}
		e.vm = s.create(api.CreateVMs{Text: s.machine(disks...), Name: "on-" + e.name})[0]
	}
	read := s.readElsewhere()
	for _, e := range s.places {
		s.write(e)
		s.save(e)
		s.through(e.vm, "terminate", "DONE")
		s.expectData(e)
	}
	s.through(read.vm, "terminate", "DONE")
	s.saved(append([]*elsewhere{read}, s.places...)...)
	for _, e := range s.places {
		s.clones(e)
		s.empty(e)
	}
	s.nothingOnHost()
}

// readElsewhere starts a machine on images that are only read where they are: its own in qcow2, and data in vmdk.
func (s *storage) readElsewhere() *elsewhere {
	s.Helper()
	data := s.file("data.img", append(noise(4<<20), make([]byte, 12<<20)...))
	for format, raw := range map[string]string{"qcow2": s.set.Disk, "vmdk": data} {
		dir, name := s.foreign(raw, format)
		store := "url-" + format
		s.must(datastoreArgs(store, "url", dir, map[string]string{"FORMAT": format})...)
		s.must("image", "create", "--name", store, "--source", name, "-d", store)
		s.refused(fault.Unsupported, []string{store, "url", "persistent"}, "image", "persistent", store)
		s.refused(fault.Unsupported, []string{store, "url", "SOURCE"}, "image", "create", "--name", "never", "--path", raw, "-d", store)
		s.refused(fault.Unsupported, []string{store, "url", "--datastore"}, "image", "clone", store, "never")
	}
	e := &elsewhere{name: "url"}
	e.vm = s.create(api.CreateVMs{Text: s.machine("url-qcow2, CACHE_MODE=NONE", "url-vmdk"), Name: "on-url"})[0]
	s.reaches(e.vm, "RUNNING")
	s.says("the image in vmdk, read in the machine", s.ssh(e.vm, "sha256sum </dev/vdb"), s.fileSum(data))
	e.marker = "written over url"
	s.ssh(e.vm, "echo "+e.marker+" > /root/marker && sync")
	s.must("vm", "disk-saveas", strconv.Itoa(e.vm), "0", "url-saved", "--wait")
	if image := s.image1("url-saved"); image.DatastoreID != cloud.DefaultDatastore {
		s.Errorf("what was saved of a datastore that is only read from is in datastore %d", image.DatastoreID)
	}
	return e
}

// write has the machine write to its disk, and to its persistent images durably.
func (s *storage) write(e *elsewhere) {
	s.Helper()
	s.reaches(e.vm, "RUNNING")
	e.marker = fmt.Sprintf("written in vm %d", e.vm)
	s.ssh(e.vm, "echo "+e.marker+" > /root/marker && sync")
	s.expect("CACHE_MODE", s.reaches(e.vm, "RUNNING").Disks[0].Mode, e.mode)
	if e.data == "" {
		return
	}
	for _, device := range []string{"vdb", "vdc"} {
		text := s.ssh(e.vm, fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M count=%d conv=notrunc,fsync 2>/dev/null; "+
			"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/%[1]s bs=1M count=%[2]d 2>/dev/null | sha256sum", device, dataMB))
		sum, _, _ := strings.Cut(text, " ")
		e.wrote = append(e.wrote, sum)
	}
	s.refused(fault.Busy, []string{e.name + "-" + e.data, fmt.Sprintf("vm %d", e.vm)}, "image", "clone", e.name+"-"+e.data, "never")
}

// save saves the running machine's disk into its datastore: the storage clones, and only what changed is moved.
func (s *storage) save(e *elsewhere) {
	s.Helper()
	s.must("vm", "disk-saveas", strconv.Itoa(e.vm), "0", e.name+"-saved", "--wait")
	s.ssh(e.vm, "echo later > /root/marker && sync")
	image, base := s.image1(e.name+"-saved"), s.image1(e.name)
	if image.DatastoreID != base.DatastoreID || image.ClonedFrom == nil || image.ClonedFrom.ImageID != base.ID {
		s.Errorf("saved in datastore %d, of %+v", image.DatastoreID, image.ClonedFrom)
		return
	}
	if moved := image.SavedFrom.Moved; moved <= 0 || moved > base.Size/4 {
		s.Errorf("%s: to save a few files %d bytes were moved of %d", e.name, moved, base.Size)
	}
	s.Logf("%s: saved by %s, %d KiB of %d moved", e.name, image.ClonedFrom.Kind, image.SavedFrom.Moved>>10, base.Size>>10)
}

// expectData reads persistent images back from their repository, through a clone in the default datastore.
func (s *storage) expectData(e *elsewhere) {
	s.Helper()
	if e.data == "" {
		return
	}
	for i, mode := range []string{e.data, "NONE"} {
		name := e.name + "-" + mode
		s.must("image", "clone", name, name+"-copy", "-d", "default", "--nonpersistent")
		path := filepath.Join(s.stateDir(), "server", "datastores", strconv.Itoa(cloud.DefaultDatastore), s.image1(name+"-copy").Source)
		s.expect("what was written to "+name, s.headSum(path, dataMB<<20), e.wrote[i])
		s.must("image", "delete", name+"-copy", "--wait")
	}
}

func (l *life) fileSum(path string) string { return l.headSum(path, 1<<40) }

func (l *life) headSum(path string, n int64) string {
	l.Helper()
	f, err := os.Open(path)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, n)); err != nil {
		l.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// saved boots from the images that were saved: each has its machine's file as it was then, also after it was kept in a system
// datastore for a while.
func (s *storage) saved(places ...*elsewhere) {
	s.Helper()
	var ids []int
	for _, e := range places {
		text := s.machine(e.name + "-saved")
		if e.system != "" {
			args := append(datastoreArgs(e.name+"-system", e.name, e.system, e.options), "--type", "system")
			text += fmt.Sprintf("SCHED_DS_REQUIREMENTS=\"ID = %s\"\n", s.must(args...))
		}
		ids = append(ids, s.create(api.CreateVMs{Text: text, Name: "from-" + e.name})...)
	}
	s.reach(ids, "RUNNING")
	var kept []int
	for i, e := range places {
		s.expect("the file in "+e.name+"-saved", s.ssh(ids[i], "cat /root/marker"), e.marker)
		if e.system != "" {
			s.ssh(ids[i], "echo "+e.name+" > /run/remembered")
			s.act(ids[i], "stop")
			kept = append(kept, ids[i])
		}
	}
	s.reach(kept, "STOPPED")
	for i, e := range places {
		if e.system != "" {
			s.refused(fault.Busy, []string{e.name + "-system", fmt.Sprintf("vm %d", ids[i])}, "datastore", "delete", e.name+"-system")
			if len(s.list(e, e.system)) == 0 {
				s.Errorf("%s-system holds nothing of a machine that is stopped", e.name)
			}
			s.act(ids[i], "resume")
		}
	}
	s.reach(kept, "RUNNING")
	for i, e := range places {
		if e.system != "" {
			s.expect("what a machine kept in "+e.name+"-system has in memory", s.ssh(ids[i], "cat /run/remembered"), e.name)
		}
		s.act(ids[i], "terminate-hard")
	}
	s.reach(ids, "DONE")
	for _, e := range places {
		if e.system != "" {
			if left := s.list(e, e.system); len(left) > 0 {
				s.Errorf("%s-system: left: %v", e.name, left)
			}
			s.must("datastore", "delete", e.name+"-system")
		}
	}
}

// clones makes a clone of a clone, and deletes them in the order that the storage allows.
func (s *storage) clones(e *elsewhere) {
	s.Helper()
	saved := e.name + "-saved"
	s.must("image", "clone", saved, e.name+"-clone")
	kind := s.image1(e.name + "-clone").ClonedFrom.Kind
	s.says("image show", s.must("image", "show", e.name+"-clone"), "CLONED FROM", kind)
	if e.depends {
		s.expect("kind of clone", kind, "rbd-clone")
		s.refused(fault.Busy, []string{saved, e.name + "-clone", "flatten"}, "image", "delete", saved)
		s.refused(fault.Busy, []string{e.name, saved, "flatten"}, "image", "delete", e.name)
	}
	s.must("image", "flatten", e.name+"-clone", saved)
	names := []string{e.name, saved, e.name + "-clone"}
	if e.data != "" {
		names = append(names, e.name+"-"+e.data, e.name+"-NONE")
	}
	for _, name := range names {
		s.must("image", "delete", name, "--wait")
	}
}

// empty checks that nothing is left in a datastore that had everything, by its driver and by looking behind it.
func (s *storage) empty(e *elsewhere) {
	s.Helper()
	if left := s.list(e, e.path); len(left) > 0 {
		s.Errorf("%s: left: %v", e.name, left)
	}
	if left := s.behind(e); len(left) > 0 {
		s.Errorf("%s: left: %q", e.name, left)
	}
	s.must("datastore", "delete", e.name)
}

// list is what the driver lists.
func (s *storage) list(e *elsewhere, path string) []repository.Info {
	s.Helper()
	repo, err := drivers.Open(disk.Repository{ID: 9, Driver: e.name, Path: path, Options: e.options})
	if err != nil {
		s.Fatal(err)
	}
	if c, ok := repo.(io.Closer); ok {
		defer c.Close()
	}
	list, err := repo.List(s.ctx, "")
	if err != nil {
		s.Error(err)
	}
	return list
}

// behind is what the storage has, hidden things too.
func (s *storage) behind(e *elsewhere) []string {
	s.Helper()
	switch e.name {
	case "ssh":
		left, err := filepath.Glob(filepath.Join(e.path, "*"))
		hidden, _ := filepath.Glob(filepath.Join(e.path, ".*"))
		if err != nil {
			s.Fatal(err)
		}
		return append(left, hidden...)
	case "s3":
		left := s.s3.Keys()
		if n := s.s3.Uploads(); n > 0 {
			left = append(left, fmt.Sprintf("%d uploads", n))
		}
		return left
	default:
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		defer cancel()
		text, err := s.ceph.Run(ctx, "rbd", "ls", "rbd")
		if err != nil {
			s.Fatal(err)
		}
		return strings.Fields(text)
	}
}
