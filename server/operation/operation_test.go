package operation

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/server/inventory"
	"hayloft/server/lifecycle"
	"hayloft/server/scheduler"
	"hayloft/store/memory"
)

// cloudOf is an installation in memory with one host, a READY image, a container's one, and a network.
func cloudOf(t *testing.T) *Operations {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.DiscardHandler)
	st := memory.New()
	inv, err := inventory.Open(ctx, st, log)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = inv.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		_ = st.Close()
	})
	o := &Operations{Inv: inv, Scheduler: scheduler.Scheduler{Policy: scheduler.Striping}, Log: log, Now: time.Now}
	check(t, o.Bootstrap(ctx, t.TempDir()))
	host, err := o.CreateHost(ctx, "node1", -1)
	check(t, err)
	_, _, err = inv.Hosts.Update(ctx, host, func(h *cloud.Host) error {
		h.State, h.Session, h.CPU, h.MemoryMB, h.DiskMB = cloud.HostStateMonitored, "s", 8, 8192, 100_000
		h.Hypervisor = []cloud.HostHypervisor{{Name: "qemu"}, {Name: "lxc"}}
		return nil
	})
	check(t, err)
	ready(t, o, "NAME=tiny\nPATH=/srv/tiny.img", "raw", 64<<20)
	ready(t, o, "NAME=box\nPATH=/srv/box.tar.gz", "tar.gz", 4<<20)
	ready(t, o, "NAME=kernel\nPATH=/srv/vmlinuz\nTYPE=KERNEL", "raw", 1<<20)
	_, err = o.CreateNetwork(ctx, parse(t, "NAME=lan\nAR=[TYPE=IP4, IP=10.0.0.10, SIZE=50]\nGATEWAY=10.0.0.1\nNETWORK_MASK=255.255.255.0"), -1)
	check(t, err)
	return o
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, text string) template.Template {
	t.Helper()
	tmpl, err := template.Parse(text)
	check(t, err)
	return tmpl
}

func ready(t *testing.T, o *Operations, text, format string, size int64) int {
	t.Helper()
	id, err := o.CreateImage(t.Context(), parse(t, text), -1)
	check(t, err)
	_, revision, err := o.Inv.Images.Update(t.Context(), id, func(i *cloud.Image) error {
		i.State, i.Format, i.Size, i.ObjectSize, i.Digest = cloud.ImageStateReady, format, size, size, "blake3:00"
		return nil
	})
	check(t, err)
	check(t, o.Inv.WaitFor(t.Context(), revision))
	return id
}

const machineText = "CPU=0.1\nMEMORY=64\nDISK=[IMAGE=tiny]\nNIC=[NETWORK=lan]\nCONTEXT=[NETWORK=YES, GREETING=\"I am $NAME\"]\nCOLOUR=red\n"

func TestMachinesMadeTogetherAreDistinct(t *testing.T) {
	o := cloudOf(t)
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, machineText), Name: "web", Count: 40})
	check(t, err)
	addresses, names := map[string]bool{}, map[string]bool{}
	for _, id := range ids {
		vm, err := o.Inv.VM(id)
		check(t, err)
		addresses[vm.NICs[0].IP], names[vm.Name] = true, true
		if vm.Context["ETH0_IP"] != vm.NICs[0].IP || vm.Context["GREETING"] != "I am "+vm.Name {
			t.Errorf("vm %d: context %v", id, vm.Context)
		}
		if colour, _ := vm.UserTemplate.Get("COLOUR"); colour != "red" {
			t.Errorf("vm %d: user template %v", id, vm.UserTemplate)
		}
		if vm.State != cloud.StatePending || vm.Hypervisor != "qemu" || vm.Disks[0].Target != "vda" || vm.ContextDev != "vdb" {
			t.Errorf("vm %d: %v %s %s %s", id, vm.Phase(), vm.Hypervisor, vm.Disks[0].Target, vm.ContextDev)
		}
	}
	if len(addresses) != 40 || len(names) != 40 || !names["web-0"] || !names["web-39"] {
		t.Fatalf("%d addresses, names %v", len(addresses), names)
	}
	// The range has 50: eleven more do not fit, and nothing of them stays.
	_, err = o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, machineText), Name: "more", Count: 11})
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "lan") {
		t.Fatalf("more machines than addresses: %v", err)
	}
	if got := len(o.Inv.Leases(0)); got != 40 {
		t.Fatalf("%d leases after a refused request, want 40", got)
	}
}

// The first machines of a large request are made in a transaction of their own; when the rest cannot be,
// they go again.
func TestAllMachinesOfARequestOrNone(t *testing.T) {
	o := cloudOf(t)
	_, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, machineText), Count: 2 * perCreate})
	if !fault.Is(err, fault.OutOfSpace) {
		t.Fatalf("more machines than addresses: %v", err)
	}
	made := o.Inv.AllVMs()
	if len(made) == 0 {
		t.Fatal("the request failed before anything was made: it shows nothing")
	}
	for _, vm := range made {
		if vm.State != cloud.StateDone {
			t.Errorf("vm %d is %v", vm.ID, vm.Phase())
		}
	}
	if got := len(o.Inv.Leases(0)); got != 0 {
		t.Errorf("%d leases left", got)
	}
}

func TestManyClientsNeverShareAnAddress(t *testing.T) {
	o := cloudOf(t)
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			if _, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, machineText), Count: 4}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen := map[string]int{}
	for _, vm := range o.Inv.AllVMs() {
		if other, ok := seen[vm.NICs[0].IP]; ok {
			t.Errorf("vm %d and vm %d have %s", vm.ID, other, vm.NICs[0].IP)
		}
		seen[vm.NICs[0].IP] = vm.ID
	}
	if len(seen) != 40 {
		t.Fatalf("%d machines, want 40", len(seen))
	}
}

func TestBadTemplatesAreNamed(t *testing.T) {
	o := cloudOf(t)
	ready(t, o, "NAME=mine\nPATH=/srv/mine.img\nPERSISTENT=YES", "raw", 1<<20)
	base := "CPU=1\nMEMORY=64\n"
	for text, want := range map[string]string{
		"MEMORY=64":                                 "no CPU",
		"CPU=1":                                     "no MEMORY",
		"CPU=x\nMEMORY=64":                          "CPU",
		"CPU=1\nMEMORY=-1":                          "MEMORY is -1",
		base + "DISK=[IMAGE=nope]":                  `image "nope" does not exist`,
		base + "DISK=[IMAGE_ID=99]":                 "image 99 does not exist",
		base + "DISK=[IMAGE=tiny, SIZE=1]":          "SIZE is 1 MB",
		base + "DISK=[IMAGE=kernel]":                "is a KERNEL, not a disk",
		base + "DISK=[IMAGE=tiny, CACHE_MODE=NEAR]": `CACHE_MODE "NEAR" is none of NONE, AROUND`,
		base + "DISK=[TYPE=fs]":                     "needs SIZE",
		base + "DISK=[IMAGE=box]\nHYPERVISOR=qemu":  "virtual machines need a disk image",
		base + "DISK=[IMAGE=tiny]\nHYPERVISOR=lxc":  "containers need an archive",
		base + "HYPERVISOR=xen":                     "not supported",
		base + "NIC=[NETWORK=wan]":                  `network "wan" does not exist`,
		base + "NIC=[NETWORK=lan, IP=10.9.9.9]":     "in none of its ranges",
		base + "OS=[KERNEL=tiny]":                   "is a OS, not a KERNEL",
		base + "OS=[MACHINE=microvm]":               "needs OS/KERNEL",
		base + "SCHED_REQUIREMENTS=\"a = \"":        "SCHED_REQUIREMENTS",
		base + "GRAPHICS=[TYPE=spice]":              "spice",
		base + "NAME=\"a/b\"":                       "contains",
		base + "DISK=[IMAGE=tiny, TARGET=vda]\nDISK=[IMAGE=tiny, TARGET=vda]": "TARGET vda is taken",
	} {
		tmpl, err := template.Parse(text)
		check(t, err)
		_, err = o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
		if fault.ClassOf(err) == fault.Internal {
			t.Errorf("%q: error without a class: %v", text, err)
		}
	}
	if n := len(o.Inv.AllVMs()) + len(o.Inv.Leases(0)); n != 0 {
		t.Fatalf("refused templates left %d machines and leases", n)
	}
}

func TestPersistentImageHasOneUser(t *testing.T) {
	o := cloudOf(t)
	ready(t, o, "NAME=mine\nPATH=/srv/mine.img\nPERSISTENT=YES", "raw", 1<<20)
	tmpl := parse(t, "CPU=1\nMEMORY=64\nDISK=[IMAGE=mine]")
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1})
	check(t, err)
	if _, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1}); err == nil || !strings.Contains(err.Error(), "in use by vm") {
		t.Fatalf("second user: %v", err)
	}
	check(t, o.Action(t.Context(), ids[0], "terminate"))
	if _, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: tmpl, Count: 1}); err != nil {
		t.Fatalf("after the first was terminated: %v", err)
	}
}

func TestImageInUseIsNotDeleted(t *testing.T) {
	o := cloudOf(t)
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, machineText), Count: 1, Hold: true})
	check(t, err)
	if err := o.DeleteImage(t.Context(), 0); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "vm 0") {
		t.Fatalf("image in use: %v", err)
	}
	if img, _ := o.Inv.Image(0); img.State != cloud.ImageStateReady {
		t.Fatalf("after a refused deletion the image is %v", img.State)
	}
	if err := o.DeleteNetwork(t.Context(), 0); !fault.Is(err, fault.Busy) {
		t.Fatalf("network in use: %v", err)
	}
	check(t, o.Action(t.Context(), ids[0], "terminate"))
	check(t, o.DeleteImage(t.Context(), 0))
	check(t, o.DeleteNetwork(t.Context(), 0))
	if _, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, "CPU=1\nMEMORY=1\nDISK=[IMAGE=tiny]"), Count: 1}); err == nil {
		t.Fatal("a machine was made from an image that is being deleted")
	}
}

func TestMachineWaitsForItsImage(t *testing.T) {
	o := cloudOf(t)
	id, err := o.CreateImage(t.Context(), parse(t, "NAME=slow\nPATH=/srv/slow.img"), -1)
	check(t, err)
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, "CPU=1\nMEMORY=64\nHYPERVISOR=qemu\nDISK=[IMAGE=slow]"), Count: 1})
	check(t, err)
	if vm, _ := o.Inv.VM(ids[0]); vm.State != cloud.StateCloning {
		t.Fatalf("machine of a LOCKED image is %v (image %d)", vm.Phase(), id)
	}
}

func TestNamesAreUniqueAndValid(t *testing.T) {
	o := cloudOf(t)
	if _, err := o.CreateImage(t.Context(), parse(t, "NAME=tiny\nPATH=/srv/x.img"), -1); !fault.Is(err, fault.Exists) {
		t.Fatalf("second image of a name: %v", err)
	}
	for _, name := range []string{"a/b", "a\nb", "", strings.Repeat("x", 129)} {
		var tmpl template.Template
		tmpl.Set("NAME", name)
		tmpl.Set("PATH", "/srv/x.img")
		if _, err := o.CreateImage(t.Context(), tmpl, -1); !fault.Is(err, fault.Invalid) {
			t.Errorf("image named %q: %v", name, err)
		}
	}
}

func TestDeployToANamedHostThatIsTooSmall(t *testing.T) {
	o := cloudOf(t)
	ids, err := o.CreateVMs(t.Context(), CreateVMs{TemplateID: -1, Text: parse(t, "CPU=1\nMEMORY=9000"), Count: 1, Hold: true})
	check(t, err)
	err = o.Deploy(t.Context(), ids[0], 0, true)
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "8192 MB of memory free, 9000 needed") {
		t.Fatalf("deploy that does not fit: %v", err)
	}
	check(t, o.Deploy(t.Context(), ids[0], 0, false))
	if vm, _ := o.Inv.VM(ids[0]); vm.LCM != cloud.LCMProlog || vm.Orders.Goal != lifecycle.GoalRunning || len(vm.History) != 1 {
		t.Fatalf("deployed: %v, orders %+v", vm.Phase(), vm.Orders)
	}
}

func TestDeleteInEveryState(t *testing.T) {
	for _, row := range cloud.Table() {
		if row.Event != cloud.EventRecoverDelete {
			continue
		}
		t.Run(row.From.String(), func(t *testing.T) {
			vm := cloud.VM{ID: 5, HostID: -1, State: row.From.State, LCM: row.From.LCM}
			if row.From.State == cloud.StateActive || row.From.State == cloud.StatePoweroff || row.From.State == cloud.StateSuspended {
				vm.HostID = 0
			}
			o := &Operations{Now: time.Now}
			check(t, o.step(&vm, cloud.EventRecoverDelete))
			if vm.HostID >= 0 && (vm.Orders.Goal != lifecycle.GoalGone || !vm.Orders.Hard) {
				t.Fatalf("%v: its host is told %+v", vm.Phase(), vm.Orders)
			}
			if vm.State != cloud.StateDone && vm.LCM != cloud.LCMCleanupDelete {
				t.Fatalf("deleted: %v", vm.Phase())
			}
		})
	}
}
