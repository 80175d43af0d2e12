package system

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/lab/fleet"
	"hayloft/lab/httplab"
	"hayloft/lab/labtest"
	"hayloft/lab/port"
	"hayloft/lab/sshlab"
	"hayloft/server/api"
)

// lost is a product whose storage servers die: a web server, and an sshd that has a datastore with PLAIN_DATA. All of it is in
// one network namespace: the unencrypted way has a port of its own each time.
type lost struct {
	*life
	web     *web
	storage *sshd
}

// web is a web server that can be made to die in the middle of something.
type web struct {
	*testing.T
	site    *fleet.Site
	address string
	files   map[string]string // by name

	mu     sync.Mutex
	server *httplab.Server // nil: dead
	deadly string          // requests for this file
	left   int             // so many of them are answered, then it dies; -1: it lives
	dead   chan struct{}   // closed when it has died of that
}

func (w *web) ServeHTTP(answer http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	w.mu.Lock()
	dies := false
	if name == w.deadly && r.Method == http.MethodGet && w.left >= 0 {
		dies = w.left == 0
		w.left--
	}
	path := w.files[name]
	w.mu.Unlock()
	if dies {
		w.kill()
		close(w.dead)
		return
	}
	r.URL.Path = filepath.Base(path)
	httplab.Files(filepath.Dir(path)).ServeHTTP(answer, r)
}

func (w *web) has(name, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[name] = path
}

// start serves, at the same address every time.
func (w *web) start() {
	w.Helper()
	err := w.site.Namespace.Inside(func() (err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.server != nil {
			return nil
		}
		w.left = -1
		w.server, err = httplab.Start(httplab.Config{Handler: w, Listen: w.address})
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
}

func (w *web) kill() {
	w.mu.Lock()
	server := w.server
	w.server = nil
	w.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

// diesOf has it die once it has answered so many requests for a file.
func (w *web) diesOf(file string, answers int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadly, w.left, w.dead = file, answers, make(chan struct{})
}

func (w *web) awaitDeath() {
	w.Helper()
	select {
	case <-w.dead:
	case <-time.After(patience):
		w.Fatalf("nobody asked for %s that often", w.deadly)
	}
}

// sshd is an sshd in the product's namespace. What starts it must run on one thread, which it does not outlive.
type sshd struct {
	*sshlab.Server
	test  *testing.T
	alive bool
	dir   string // of the datastore
	tasks chan func()
}

func newSSHD(p *product, keys, dir string) *sshd {
	p.Helper()
	s := &sshd{test: p.T, dir: dir, tasks: make(chan func())}
	ended := make(chan error, 1)
	go func() {
		ended <- p.site.Namespace.Inside(func() error {
			for task := range s.tasks {
				task()
			}
			return nil
		})
	}()
	p.servers = append(p.servers, func() {
		if s.Server != nil {
			s.Kill()
		}
		close(s.tasks)
		if err := <-ended; err != nil {
			p.Error(err)
		}
	})
	s.do(func() (err error) { s.Server, err = sshlab.New(keys); return err })
	s.alive = true
	return s
}

func (s *sshd) do(task func() error) {
	s.test.Helper()
	done := make(chan error)
	s.tasks <- func() { done <- task() }
	if err := <-done; err != nil {
		s.test.Fatal(err)
	}
}

func (s *sshd) revive() {
	s.test.Helper()
	s.do(s.Restart)
	s.alive = true
}

func (s *sshd) die() {
	s.Kill()
	s.alive = false
}

// objects are the files of the datastore, hidden ones too.
func (s *sshd) objects() (names []string) {
	s.test.Helper()
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, s.dir+"/"))
		}
		if os.IsNotExist(err) {
			return nil // it went meanwhile
		}
		return err
	})
	if err != nil {
		s.test.Fatal(err)
	}
	return names
}

// killDuring kills it as soon as something is written to a hidden file, unless done is closed before.
func (s *sshd) killDuring(done <-chan struct{}) {
	s.test.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); {
		select {
		case <-done:
			return
		case <-time.After(time.Millisecond):
		}
		for _, name := range s.objects() {
			if fi, err := os.Stat(filepath.Join(s.dir, name)); strings.HasSuffix(name, ".part") && err == nil && fi.Size() > 0 {
				s.die()
				return
			}
		}
	}
	s.test.Fatal("nothing was written to the storage")
}

func beginLost(t *testing.T) *lost {
	t.Helper()
	labtest.Root(t, "sshd")
	l, keys, dir := &lost{}, t.TempDir(), t.TempDir() // which go when the product has
	p := begin(t, func(p *product) []string {
		p.within = true
		l.web = &web{T: t, site: p.site, address: freeAddress(p), files: map[string]string{}}
		l.web.start()
		p.servers = append(p.servers, l.web.kill)
		l.storage = newSSHD(p, keys, dir)
		return nil
	})
	t.Cleanup(func() { // a product goes with its storage
		if t.Failed() {
			l.web.start()
			if !l.storage.alive {
				l.storage.revive()
			}
		}
	})
	l.life = furnish(p)
	return l
}

// freeAddress is one of the product's loopback that nobody is given while its server is away: not even a client of it, which
// would find itself there.
func freeAddress(p *product) string {
	p.Helper()
	number := 0
	err := p.site.Namespace.Inside(func() (err error) {
		number, err = port.Free("127.0.0.1")
		return err
	})
	if err != nil {
		p.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", number)
}

// TestStorageThatDies leads one machine through the death of what its disks are on: while it boots lazily from a web server, while
// what it wrote in mode BACK is drained over ssh, while a disk is saved there, and before it is saved when the machine is done.
// Each time the datastore and the cause are named, and all goes on when the storage is there again.
func TestStorageThatDies(t *testing.T) {
	l := beginLost(t)
	data := l.file("data.img", noise(4<<20))
	l.web.has("disk.img", l.set.Disk)
	l.web.has("data.img", data)
	l.must(datastoreArgs("web", "http", "http://"+l.web.address, map[string]string{"CACHE_FILL": "NO"})...)
	for _, name := range []string{"disk", "data"} {
		l.must("image", "create", "--name", "web-"+name, "--source", name+".img", "-d", "web")
	}
	options := with(l.storage.Options(), "PLAIN_DATA=YES", "REMOTE_PROGRAM="+l.binary)
	l.must(datastoreArgs("plain", "ssh", l.storage.dir, options)...)
	l.must("image", "create", "--name", "plain-data", "--type", "DATABLOCK", "--size", strconv.Itoa(dataSizeMB), "--persistent", "-d", "plain")
	l.must("image", "create", "--name", "plain-clone", "--path", data, "-d", "plain")

	l.web.diesOf("disk.img", 2)
	id := l.one(l.machine("web-disk, CACHE_MODE=AROUND", "web-data, CACHE_MODE=NONE", "plain-data, CACHE_MODE=BACK", "plain-clone, CACHE_MODE=NONE"))
	l.diesWhileBooting(id)
	l.expect("what it reads of the web server without a cache", l.sumOf(id, "vdb", 4), l.fileSum(data))
	wrote := l.diesWhileDraining(id)
	l.diesWhileSaving(id)
	l.diesBeforeTheLastSave(id)
	l.expect("plain-data in its repository", l.headSum(l.object("plain-data"), dataMB<<20), wrote)
	l.nothingOnHost()
	for _, name := range []string{"plain-data", "plain-clone", "plain-saved", "plain-done"} {
		l.must("image", "delete", name, "--wait")
	}
	if left := l.storage.objects(); len(left) > 0 {
		t.Errorf("left on the storage: %q", left)
	}
	l.must("datastore", "delete", "plain")
}

// object is the file of an image on the ssh storage.
func (l *lost) object(image string) string {
	l.Helper()
	return filepath.Join(l.storage.dir, l.image1(image).Source)
}

// names are what an error says of the ssh storage that is away.
func (l *lost) names() []string {
	return []string{"datastore " + strconv.Itoa(l.image1("plain-data").DatastoreID), l.storage.Host, "refused"}
}

// shows waits until `vm show` has all the words.
func (l *lost) shows(what string, id int, words ...string) {
	l.Helper()
	l.eventually(what, func() error {
		if said := l.must("vm", "show", strconv.Itoa(id)); !containsAll(said, words...) {
			return fmt.Errorf("vm show: %s, and not %q", said, words)
		}
		return nil
	})
}

// diesWhileDraining: what the machine writes in mode BACK is acknowledged, and gets there when the storage is there again.
func (l *lost) diesWhileDraining(id int) (wrote string) {
	l.Helper()
	l.ssh(id, "dd if=/dev/urandom of=/dev/vdc bs=4k count=1 conv=notrunc,fsync 2>/dev/null") // the first write needs the storage
	l.storage.die()
	// It is not read back here: what the machine's kernel reads ahead is not in the cache, and so waits.
	wrote, _, _ = strings.Cut(l.ssh(id, fmt.Sprintf("head -c %dm /dev/urandom >/tmp/random && dd if=/tmp/random of=/dev/vdc bs=1M conv=notrunc,fsync 2>/dev/null && "+
		"sha256sum </tmp/random", dataMB)), " ")
	l.shows("it is said what is not drained, and why", id, append(l.names(), "DISK 2 CACHE")...)
	l.eventually("all that was written is not drained", func() error { // what is shown may be of before it was written
		if c := l.cache(id, 2); c.Undrained < dataMB<<20 {
			return fmt.Errorf("of %d MiB that were written, %d bytes", dataMB, c.Undrained)
		}
		return nil
	})
	l.act(id, "poweroff")
	l.reaches(id, "POWEROFF")
	l.shows("it is off, with a warning", id, append(l.names(), "WARNING", "not drained", "plain-data")...)
	l.storage.revive()
	l.eventually("it is drained", func() error {
		vm, err := l.client.VM(l.ctx, id)
		if err == nil && vm.Warning != "" {
			err = fmt.Errorf("warning: %s", vm.Warning)
		}
		return err
	})
	if c := l.cache(id, 2); c.Undrained != 0 || c.Error != "" {
		l.Errorf("drained, it says %+v", c)
	}
	l.expect("what was drained", l.headSum(l.object("plain-data"), dataMB<<20), wrote)
	l.through(id, "resume", "RUNNING")
	return wrote
}

// diesWhileSaving: the image that was to be has the error, the machine goes on, and the next save succeeds.
func (l *lost) diesWhileSaving(id int) {
	l.Helper()
	l.ssh(id, "dd if=/dev/urandom of=/dev/vdd bs=1M count=3 conv=notrunc,fsync 2>/dev/null")
	l.eventually("the storage dies during a save", func() error { // a save may be done before it is struck
		if image := l.strikeSave(id); image.State == cloud.ImageStateReady {
			if !l.storage.alive {
				l.storage.revive()
			}
			l.must("image", "delete", "plain-saved", "--wait")
			return errors.New("it was done before")
		}
		return nil
	})
	l.says("the image that was not saved", l.image1("plain-saved").Error, l.names()[:2]...)
	l.Log(l.image1("plain-saved").Error)
	l.reaches(id, "RUNNING")
	l.ssh(id, "true")
	l.storage.revive()
	l.must("image", "delete", "plain-saved", "--wait")
	l.must("vm", "disk-saveas", strconv.Itoa(id), "3", "plain-saved", "--wait")
	l.expect("what was saved at last", l.headSum(l.object("plain-saved"), 4<<20), l.sumOf(id, "vdd", 4))
}

// strikeSave saves a disk while the storage dies, and returns what comes of it.
func (l *lost) strikeSave(id int) api.Image {
	l.Helper()
	l.reaches(id, "RUNNING")
	image, err := l.client.SaveAs(l.ctx, id, 3, "plain-saved")
	if err != nil {
		l.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.client.WaitImage(l.ctx, image, func(i api.Image, gone bool) (bool, error) {
			return gone || i.State != cloud.ImageStateLocked, nil
		})
	}()
	l.storage.killDuring(done)
	<-done
	return l.image1("plain-saved")
}

// diesBeforeTheLastSave: a machine that is done keeps its disks until what is wanted of them is saved.
func (l *lost) diesBeforeTheLastSave(id int) {
	l.Helper()
	name := strconv.Itoa(id)
	l.ssh(id, "dd if=/dev/urandom of=/dev/vdd bs=1M count=2 conv=notrunc,fsync 2>/dev/null")
	want := l.sumOf(id, "vdd", 4)
	l.must("vm", "disk-saveas", name, "3", "plain-done", "--when-done")
	l.storage.die()
	l.act(id, "terminate")
	l.eventually("it says why it is not done", func() error {
		vm, err := l.client.VM(l.ctx, id)
		if err == nil && !vm.LCM.Failure() {
			err = fmt.Errorf("vm %d is %s", id, vm.StateName)
		}
		return err
	})
	vm, err := l.client.VM(l.ctx, id)
	if err != nil || vm.StateName != "EPILOG_FAILURE" {
		l.Fatalf("%s: %s, %v", vm.StateName, vm.Error, err)
	}
	l.says("its error", vm.Error, append(l.names(), "disk 3 is not saved")...)
	l.storage.revive()
	l.must("vm", "recover", name, "--retry")
	l.reaches(id, "DONE")
	l.expect("what was saved in the end", l.headSum(l.object("plain-done"), 4<<20), want)
}

// diesWhileBooting: the machine waits, is said to wait for what, and boots when the web server is there again.
func (l *lost) diesWhileBooting(id int) {
	l.Helper()
	l.web.awaitDeath()
	l.Log("the web server is dead")
	l.shows("it is said what the machine waits for", id, "DISK 0 CACHE", "datastore", l.web.address, "refused")
	l.says("datastore show", l.must("datastore", "show", "web"), "ERROR", l.web.address, "refused")
	l.web.start()
	l.ssh(id, "true")
}

func containsAll(text string, words ...string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}
