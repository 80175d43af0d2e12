package operation

import (
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/lifecycle"
)

// webCloud has two more datastores: of another directory with defaults of its own, and of a web server; with an image
// "far" in the latter, and persistent ones.
func webCloud(t *testing.T, defaults string) *Operations {
	o := cloudOf(t)
	slow, err := o.CreateDatastore(t.Context(), parse(t, "NAME=slow\nBASE_PATH=/srv/slow\n"+defaults), -1)
	check(t, err)
	web, err := o.CreateDatastore(t.Context(), parse(t, "NAME=web\nDS_MAD=http\nBASE_PATH=\"https://images.example/golden\"\nUSER=ann\nPASSWORD_FILE=/etc/hayloft/web"), -1)
	check(t, err)
	ready(t, o, "NAME=mine\nPATH=/srv/mine.img\nPERSISTENT=YES", "raw", 64<<20)
	ready(t, o, "NAME=disc\nPATH=/srv/disc.iso\nTYPE=CDROM", "raw", 64<<20)
	ready(t, o, "NAME=cold\nPATH=/srv/cold.img\nCACHE_MODE=offline", "raw", 64<<20)
	readyIn(t, o, "NAME=slowly\nPATH=/srv/slowly.img\nCACHE_SIZE=20", slow)
	readyIn(t, o, "NAME=far\nSOURCE=tiny.img", web)
	return o
}

func readyIn(t *testing.T, o *Operations, text string, datastore int) int {
	t.Helper()
	id, err := o.CreateImage(t.Context(), parse(t, text), datastore)
	check(t, err)
	_, revision, err := o.Inv.Images.Update(t.Context(), id, func(i *cloud.Image) error {
		i.State, i.Format, i.Size, i.ObjectSize, i.Digest = cloud.ImageStateReady, "raw", 64<<20, 64<<20, "blake3:00"
		return nil
	})
	check(t, err)
	check(t, o.Inv.WaitFor(t.Context(), revision))
	return id
}

func oneVM(t *testing.T, o *Operations, disk string) (cloud.VM, error) {
	t.Helper()
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, "CPU=1\nMEMORY=64\nDISK=["+disk+"]"), Count: 1, Hold: true})
	if err != nil {
		return cloud.VM{}, err
	}
	vm, err := o.Inv.VM(ids[0])
	check(t, err)
	return vm, nil
}

func TestCacheSettingsAreInherited(t *testing.T) {
	o := webCloud(t, "CACHE_MODE=back\nCACHE_SIZE=40\nPRELOAD_SIZE=7")
	const auto = cloud.PreloadAuto
	for disk, want := range map[string]cloud.Disk{
		"IMAGE=tiny": {Preload: auto},
		"IMAGE=tiny, CACHE_MODE=thru, CACHE_SIZE=0":    {Mode: "THRU", Preload: auto},
		"IMAGE=tiny, PRELOAD_SIZE=Auto, CACHE_SIZE=10": {Preload: auto, CacheSize: 10 << 20},
		"IMAGE=tiny, PRELOAD_SIZE=0, CACHE_MODE=NONE":  {Mode: "NONE"},
		"IMAGE=cold":                    {Mode: "OFFLINE", Preload: auto},
		"IMAGE=cold, CACHE_MODE=AROUND": {Mode: "AROUND", Preload: auto},
		"IMAGE=slowly":                  {Mode: "BACK", CacheSize: 20 << 20, Preload: 7 << 20},
		"IMAGE=slowly, PRELOAD_SIZE=3, CACHE_SIZE=0":    {Mode: "BACK", Preload: 3 << 20},
		"IMAGE=slowly, CACHE_MODE=NONE, CACHE_SIZE=100": {Mode: "NONE", CacheSize: 100 << 20, Preload: 7 << 20},
		"IMAGE=far, CACHE_MODE=AROUND":                  {Mode: "AROUND", Preload: auto},
		"IMAGE=box":                                     {},
		"IMAGE=box, CACHE_MODE=OFFLINE":                 {Mode: "OFFLINE"},
		"IMAGE=disc":                                    {},
		"TYPE=fs, SIZE=10":                              {},
	} {
		vm, err := oneVM(t, o, disk)
		if err != nil {
			t.Errorf("%s: %v", disk, err)
			continue
		}
		if got := vm.Disks[0]; got.Mode != want.Mode || got.CacheSize != want.CacheSize || got.Preload != want.Preload {
			t.Errorf("%s: mode %q, size %d, preload %d; want %q, %d, %d", disk, got.Mode, got.CacheSize, got.Preload, want.Mode, want.CacheSize, want.Preload)
		}
	}
	for _, mode := range []string{"NONE", "AROUND", "THRU", "BACK", "OFFLINE"} {
		vm, err := oneVM(t, o, "IMAGE=mine, CACHE_MODE="+mode)
		check(t, err)
		check(t, o.Action(t.Context(), vm.ID, "terminate"))
	}
}

func TestCachingThatCannotBeIsRefused(t *testing.T) {
	o := webCloud(t, "CACHE_MODE=OFFLINE\nCACHE_SIZE=63")
	for disk, want := range map[string]struct {
		class fault.Class
		words string
	}{
		"IMAGE=tiny, CACHE_MODE=NEAR":                      {fault.Invalid, `CACHE_MODE "NEAR" is none of`},
		"IMAGE=tiny, CACHE_SIZE=many":                      {fault.Invalid, "CACHE_SIZE"},
		"IMAGE=tiny, CACHE_SIZE=-1":                        {fault.Invalid, "CACHE_SIZE is -1"},
		"IMAGE=tiny, PRELOAD_SIZE=some":                    {fault.Invalid, "or AUTO"},
		"IMAGE=box, CACHE_MODE=AROUND":                     {fault.Unsupported, "CACHE_MODE AROUND is not possible for containers"},
		"IMAGE=box, CACHE_SIZE=10":                         {fault.Unsupported, "not possible for containers"},
		"IMAGE=disc, CACHE_MODE=BACK":                      {fault.Unsupported, "CACHE_MODE BACK is not possible for CDROMs"},
		"IMAGE=tiny, CACHE_MODE=OFFLINE, CACHE_SIZE=63":    {fault.Invalid, "CACHE_SIZE is 63 MB and the image has 64 MB"},
		"IMAGE=slowly, CACHE_SIZE=10":                      {fault.Invalid, "CACHE_SIZE is 10 MB"},
		"IMAGE=mine, CACHE_MODE=OFFLINE, CACHE_SIZE=1":     {fault.Invalid, "CACHE_SIZE is 1 MB"},
		"TYPE=fs, SIZE=10, CACHE_MODE=BACK":                {fault.Unsupported, "CACHE_MODE is for disks with an image"},
		"TYPE=fs, SIZE=10, PRELOAD_SIZE=1":                 {fault.Unsupported, "PRELOAD_SIZE is for disks with an image"},
		"TYPE=swap, SIZE=10, CACHE_SIZE=1, FORMAT=\"raw\"": {fault.Unsupported, "CACHE_SIZE is for disks with an image"},
	} {
		_, err := oneVM(t, o, disk)
		if !fault.Is(err, want.class) || !strings.Contains(err.Error(), want.words) || !strings.Contains(err.Error(), "DISK 0") {
			t.Errorf("%s: %v (%v), want %v with %q", disk, err, fault.ClassOf(err), want.class, want.words)
		}
	}
}

func TestTemplatesOfDatastoresAndImagesAreChecked(t *testing.T) {
	o := webCloud(t, "")
	for text, want := range map[string]string{
		"NAME=a\nBASE_PATH=/srv/a\nCACHE_MODE=SOON":                                "CACHE_MODE",
		"NAME=a\nBASE_PATH=/srv/a\nCACHE_FILL=PERHAPS":                             "CACHE_FILL",
		"NAME=a\nBASE_PATH=/srv/a\nCACHE_FILL_RATE=-2":                             "CACHE_FILL_RATE is -2",
		"NAME=a\nBASE_PATH=/srv/a\nPRELOAD_SIZE=x":                                 "PRELOAD_SIZE",
		"NAME=a\nDS_MAD=http\nBASE_PATH=/srv/a":                                    "is not a URL",
		"NAME=a\nDS_MAD=http\nBASE_PATH=\"ftp://h/x\"":                             "is not a URL",
		"NAME=a\nDS_MAD=http\nBASE_PATH=\"http://u:secret@h/x\"":                   "without user",
		"NAME=a\nDS_MAD=http\nTYPE=SYSTEM_DS\nBASE_PATH=\"http://h/x\"":            "cannot be a SYSTEM_DS",
		"NAME=a\nDS_MAD=http\nBASE_PATH=\"https://h/x\"\nCA_FILE=/etc/no/such.pem": "CA_FILE",
		"NAME=a\nDS_MAD=nfs\nBASE_PATH=/srv/a":                                     "server:/directory",
		"NAME=a\nDS_MAD=rados\nBASE_PATH=/x":                                       "there are path",
	} {
		if _, err := o.CreateDatastore(t.Context(), parse(t, text), -1); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "datastore a") {
			t.Errorf("%q: %v, want %q", text, err, want)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error repeats the password: %v", text, err)
		}
	}
	web := o.Inv.AllDatastores()[4].ID
	for text, want := range map[string]string{
		"NAME=i\nPATH=/x\nCACHE_SIZE=-5":              "CACHE_SIZE is -5",
		"NAME=i\nSOURCE=\"../x\"":                     "SOURCE",
		"NAME=i\nSOURCE=x\nPATH=/x":                   "both PATH and SOURCE",
		"NAME=i\nSOURCE=x\nSIZE=5":                    "SIZE",
		"NAME=i\nSOURCE=x\nFORMAT=qcow2":              "not qcow2",
		"NAME=i\nSOURCE=x\nPERSISTENT=YES":            "cannot be persistent",
		"NAME=i\nSOURCE=tiny.img":                     "is image 7 (far) already",
		"NAME=i\nPATH=/x":                             "only read from",
		"NAME=i\nTYPE=DATABLOCK\nSIZE=5":              "only read from",
		"NAME=i\nPATH=/x\nPERSISTENT=YES\nTYPE=CDROM": "cannot be persistent",
	} {
		if _, err := o.CreateImage(t.Context(), parse(t, text), web); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "image i") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if err := o.SetPersistent(t.Context(), 7, true); !fault.Is(err, fault.Unsupported) {
		t.Errorf("an image of a web server made persistent: %v", err)
	}
	if err := o.UpdateDatastore(t.Context(), web, parse(t, "CACHE_MODE=SOON"), true); !fault.Is(err, fault.Invalid) {
		t.Errorf("update of a datastore: %v", err)
	}
	if err := o.UpdateDatastore(t.Context(), web, parse(t, "BASE_PATH=\"http://other/\""), true); !fault.Is(err, fault.Invalid) {
		t.Errorf("a datastore moved: %v", err)
	}
	check(t, o.UpdateDatastore(t.Context(), web, parse(t, "CACHE_FILL=NO\nCACHE_FILL_RATE=1.5\nUSER=bob"), true))
	check(t, o.UpdateImage(t.Context(), 0, parse(t, "CACHE_MODE=AROUND"), false))
	if err := o.UpdateImage(t.Context(), 0, parse(t, "PERSISTENT=YES"), true); !fault.Is(err, fault.Invalid) {
		t.Errorf("an image made persistent by an update: %v", err)
	}
	vm, err := oneVM(t, o, "IMAGE=tiny")
	check(t, err)
	if vm.Disks[0].Mode != "AROUND" {
		t.Errorf("after an update of its image: mode %q", vm.Disks[0].Mode)
	}
	if path, ok := mustImage(t, o, 0).Template.Get("PATH"); !ok || path != "/srv/tiny.img" {
		t.Errorf("an update lost PATH: %q", path)
	}
	vm, err = oneVM(t, o, "IMAGE=far, CACHE_SIZE=8")
	check(t, err)
	a, err := lifecycle.Assignment(&vm, o.Inv)
	check(t, err)
	d := a.Machine.Disks[0]
	if !d.NoFill || d.FillRate != 3<<19 || d.CacheSize != 8<<20 || d.Preload != cloud.PreloadAuto {
		t.Errorf("the host is told %v", d)
	}
	if r := d.Image.Repository; r.Driver != "http" || r.Options["PASSWORD_FILE"] != "/etc/hayloft/web" || r.Options["USER"] != "bob" || len(r.Options) != 2 {
		t.Errorf("the host is told of repository %v", r)
	}
}

func mustImage(t *testing.T, o *Operations, id int) cloud.Image {
	t.Helper()
	img, err := o.Inv.Image(id)
	check(t, err)
	return img
}

func TestDiskCacheChanges(t *testing.T) {
	o := webCloud(t, "")
	vm, err := oneVM(t, o, "IMAGE=mine, CACHE_MODE=BACK")
	check(t, err)
	check(t, o.SetDiskCache(t.Context(), vm.ID, 0, DiskCache{Mode: "thru", SizeMB: "12", Preload: "auto"}))
	vm, err = o.Inv.VM(vm.ID)
	check(t, err)
	if d := vm.Disks[0]; d.Mode != "THRU" || d.CacheSize != 12<<20 || d.Preload != cloud.PreloadAuto {
		t.Errorf("after the change: %+v", d)
	}
	if text := vm.Template.String(); !strings.Contains(text, `CACHE_MODE="THRU"`) || !strings.Contains(text, `CACHE_SIZE="12"`) {
		t.Errorf("template after the change: %s", text)
	}
	check(t, o.SetDiskCache(t.Context(), vm.ID, 0, DiskCache{Mode: "NONE"}))
	if now, _ := o.Inv.VM(vm.ID); now.Disks[0].CacheSize != 12<<20 || now.Disks[0].Mode != "NONE" {
		t.Errorf("a second change: %+v", now.Disks[0])
	}
	for want, change := range map[fault.Class]DiskCache{
		fault.Invalid: {Mode: "OFFLINE"}, // with the 12 MB of before
	} {
		if err := o.SetDiskCache(t.Context(), vm.ID, 0, change); !fault.Is(err, want) {
			t.Errorf("%+v: %v", change, err)
		}
	}
	if err := o.SetDiskCache(t.Context(), vm.ID, 3, DiskCache{Mode: "NONE"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("no such disk: %v", err)
	}
	if err := o.SetDiskCache(t.Context(), vm.ID, 0, DiskCache{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("nothing asked: %v", err)
	}
	set := func(change func(*cloud.VM)) {
		_, revision, err := o.Inv.VMs.Update(t.Context(), vm.ID, func(vm *cloud.VM) error { change(vm); return nil })
		check(t, err)
		check(t, o.Inv.WaitFor(t.Context(), revision))
	}
	set(func(vm *cloud.VM) {
		vm.State, vm.Warning = cloud.StatePoweroff, "disk 0: 12M are not in the repository"
	})
	if err := o.SetDiskCache(t.Context(), vm.ID, 0, DiskCache{Mode: "THRU"}); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "12M") {
		t.Errorf("with undrained writes: %v", err)
	}
	set(func(vm *cloud.VM) { vm.State, vm.LCM, vm.Warning = cloud.StateActive, cloud.LCMRunning, "" })
	if err := o.SetDiskCache(t.Context(), vm.ID, 0, DiskCache{Mode: "THRU"}); !fault.Is(err, fault.WrongState) {
		t.Errorf("running: %v", err)
	}
}

func TestPrefetchesAreWishes(t *testing.T) {
	o := webCloud(t, "")
	two, err := o.CreateHost(t.Context(), "node2", -1)
	check(t, err)
	check(t, o.Prefetch(t.Context(), 0, []int{0, two, two}, 1<<20))
	check(t, o.Prefetch(t.Context(), 0, []int{0}, 1<<20)) // under way: nothing new
	wishes := func() map[int]cloud.Prefetch {
		found := map[int]cloud.Prefetch{}
		for _, p := range o.Inv.Prefetches(func(p cloud.Prefetch) bool { return p.ImageID == 0 }) {
			found[p.HostID] = p
		}
		return found
	}
	if w := wishes(); len(w) != 2 || w[0].Serial != 1 || w[0].State != cloud.PrefetchWanted || w[two].Rate != 1<<20 {
		t.Fatalf("wishes: %+v", w)
	}
	told := lifecycle.Prefetches(0, o.Inv)
	if len(told.All) != 1 || told.All[0].Serial != 1 || told.All[0].Image.Name != "tiny" || told.All[0].Image.Repository.Path == "" {
		t.Errorf("the host is told %v", told)
	}
	check(t, o.Prefetch(t.Context(), 0, []int{0}, 0)) // another rate
	if w := wishes(); w[0].Serial != 2 || w[0].Rate != 0 {
		t.Errorf("asked again: %+v", w[0])
	}
	check(t, o.DeleteHost(t.Context(), two))
	if w := wishes(); len(w) != 1 {
		t.Errorf("without the host: %+v", w)
	}
	check(t, o.CancelPrefetch(t.Context(), 0, nil))
	if w := wishes(); len(w) != 0 || len(lifecycle.Prefetches(0, o.Inv).All) != 0 {
		t.Errorf("cancelled: %+v", w)
	}
	for image, want := range map[int]fault.Class{99: fault.NotFound, 3: fault.Unsupported} {
		if err := o.Prefetch(t.Context(), image, []int{0}, 0); !fault.Is(err, want) {
			t.Errorf("image %d: %v, want %v", image, err, want)
		}
	}
	if err := o.Prefetch(t.Context(), 0, []int{0, 77}, 0); !fault.Is(err, fault.NotFound) || len(wishes()) != 0 {
		t.Errorf("no such host: %v, %v", err, wishes())
	}
}
