package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"hayloft/cloud"
	"hayloft/cloud/template"
	"hayloft/server/api"
)

func parsed(t *testing.T, text string) template.Template {
	t.Helper()
	result, err := template.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// furnish puts something of every kind on the server.
func furnish(t *testing.T, c *console) {
	nanos := func(after time.Duration) int64 { return today.Add(after - 3*time.Hour).UnixNano() }
	web := aVM(3, "web-1", running)
	web.HostID, web.HostName, web.TemplateID = 0, "node-1", 4
	web.NICs = []cloud.NIC{{ID: 0, Network: "lan", IP: "10.20.0.7", MAC: "02:00:0a:14:00:07", Model: "virtio", Filter: true}}
	web.Disks = []cloud.Disk{{ID: 0, ImageID: 1, Image: "tiny", Size: 64 * mebi, Format: "raw", Target: "vda", Mode: "AROUND"},
		{ID: 1, ImageID: -1, Size: 1024 * mebi, Target: "vdb", FS: "ext4", Format: "raw"}}
	web.OS = cloud.OS{Machine: "q35", Kernel: &cloud.FileImage{Name: "vmlinuz"}, Command: "console=ttyS0"}
	web.Graphics = &cloud.Graphics{Type: "vnc", Listen: "127.0.0.1", Port: 5903}
	web.Context = map[string]string{"ETH0_IP": "10.20.0.7", "SET_HOSTNAME": "web-1"}
	web.Timing = cloud.Timing{Submitted: nanos(0), Scheduled: nanos(12 * time.Millisecond), PrologStart: nanos(20 * time.Millisecond),
		PrologEnd: nanos(220 * time.Millisecond), BootStart: nanos(230 * time.Millisecond), BootEnd: nanos(1730 * time.Millisecond),
		Running: nanos(1750 * time.Millisecond), ReadBytes: 64 * mebi, GivenBytes: 1088 * mebi}
	web.UsedCPU, web.UsedBytes = 12.5, 100*mebi
	web.Disks = append(web.Disks, cloud.Disk{ID: 2, ImageID: 4, Image: "data", Size: 256 * mebi, Format: "raw", Target: "vdc", Mode: "BACK", Persistent: true})
	web.Caches = []api.Cache{{Disk: 0, Mode: "AROUND", Cached: 21 * mebi, Total: 40 * mebi},
		{Disk: 2, Mode: "BACK", Cached: 5 * mebi, Total: 256 * mebi, Undrained: 3 * mebi, Degraded: true, Error: "draining: datastore 1: permission denied"}}
	web.History = []cloud.History{{Seq: 0, HostID: 0, Hostname: "node-1", STime: today.Add(-3 * time.Hour).Unix(), RSTime: today.Add(-2 * time.Hour).Unix()}}
	web.Template = parsed(t, `CPU = 0.5 MEMORY = 128 DISK = [ IMAGE = "tiny" ]`)
	web.UserTemplate = parsed(t, `OWNER = "ann"`)
	c.server.Put(cloud.KindVM, web)

	waits := aVM(4, "a machine with a very long name indeed, and 漢字 too", pending)
	waits.CPU, waits.MemoryMB = 64, 1<<20
	waits.SchedMessage = "host node-1 has 4 CPU, 64 wanted; host node-2 is disabled"
	c.server.Put(cloud.KindVM, waits)

	broken := aVM(5, "broken", failure)
	broken.HostID, broken.HostName = 0, "node-1"
	broken.Error = "qemu: could not open disk\nqemu: \x1b[31mgiving up"
	c.server.Put(cloud.KindVM, broken)
	copying := aVM(6, "copying", prolog)
	copying.HostID, copying.HostName, copying.Step, copying.Done, copying.Total = 0, "node-1", "copy base of disk 0", 300*mebi, 400*mebi
	copying.Timing = cloud.Timing{Submitted: today.Add(-10 * time.Second).UnixNano(), PrologStart: today.Add(-3 * time.Second).UnixNano()}
	c.server.Put(cloud.KindVM, copying)
	draining := aVM(7, "draining", cloud.Active(cloud.LCMShutdownPoweroff))
	draining.HostID, draining.HostName, draining.Step, draining.Done, draining.Total = 0, "node-1", "drain disk 0", 12*mebi, 40*mebi
	c.server.Put(cloud.KindVM, draining)
	undrained := aVM(8, "undrained", cloud.At(cloud.StatePoweroff))
	undrained.Warning = "not drained: disk 0 has 3.0 MB that its image data has not: datastore 1 is away"
	undrained.Disks = []cloud.Disk{{ID: 0, ImageID: 4, Image: "data", Size: 256 * mebi, Format: "raw", Target: "vda", Mode: "THRU", Persistent: true}}
	undrained.Caches = []api.Cache{{Disk: 0, Mode: "BACK", Cached: 5 * mebi, Total: 256 * mebi, Undrained: 3 * mebi}}
	c.server.Put(cloud.KindVM, undrained)
	gone := aVM(2, "gone", done)
	gone.ETime = gone.STime + 60
	c.server.Put(cloud.KindVM, gone)

	c.server.Put(cloud.KindHost, api.Host{
		Host: cloud.Host{ID: 0, Name: "node-1", State: cloud.HostStateMonitored, CPU: 4, MemoryMB: 16384, DiskMB: 102400, Version: "0.1.0",
			Hypervisor: []cloud.HostHypervisor{
				{Name: "qemu", Version: "7.2.0", Accelerator: "tcg", Chipsets: []string{"pc", "q35"}, Notes: []string{"kvm: /dev/kvm opens, but a guest of 16 bytes did not run"}},
				{Name: "lxc", Error: "lxc-start is not installed"}},
			Bases: []string{"blake3:aa"}, Orphans: []int{99}, Attributes: map[string]string{"RESERVED_MEM": "1024"}},
		StateName: "MONITORED", Connected: true, VMs: []int{3, 5, 6, 7}, UsedCPU: 1.5, UsedMemoryMB: 384, UsedDiskMB: 1024, MaxCPU: 4, MaxMemoryMB: 15360,
		Held: []api.Held{{Digest: "blake3:bb", Names: "debian, debian-12", Present: 300 * mebi, Total: 900 * mebi},
			{Digest: "blake3:aa", Names: "tiny", Present: 64 * mebi, Total: 64 * mebi, Complete: true}, {Digest: "blake3:cc", Complete: true}}})
	c.server.Put(cloud.KindHost, api.Host{Host: cloud.Host{ID: 1, Name: "node-2", State: cloud.HostStateDisabled}, StateName: "DISABLED"})
	c.server.Put(cloud.KindImage, api.Image{Image: cloud.Image{ID: 1, Name: "tiny", State: cloud.ImageStateReady, DatastoreID: 1, Size: 64 * mebi,
		StoredBytes: 21 * mebi, Format: "raw", Digest: "blake3:aa", Path: "/images/tiny.img", Source: "image-1", RegTime: today.Unix(),
		Template: parsed(t, `NAME = tiny PATH = "/images/tiny.img"`)}, StateName: "USED", TypeName: "OS", VMs: []int{3, 4, 5, 6},
		Prefetches: []api.Prefetched{
			{Prefetch: cloud.Prefetch{ImageID: 1, HostID: 0, State: cloud.PrefetchDone, Done: 40 * mebi, Total: 40 * mebi, Time: today.Unix()}, HostName: "node-1"},
			{Prefetch: cloud.Prefetch{ImageID: 1, HostID: 1, State: cloud.PrefetchWanted, Done: 10 * mebi, Total: 40 * mebi, Rate: 5 * mebi, Time: today.Unix()}, HostName: "node-2"},
			{Prefetch: cloud.Prefetch{ImageID: 1, HostID: 2, State: cloud.PrefetchFailed, Total: 40 * mebi, Error: "host store: LS_MAX", Time: today.Unix()}, HostName: "node-3"}}})
	c.server.Put(cloud.KindImage, api.Image{Image: cloud.Image{ID: 4, Name: "data", State: cloud.ImageStateReady, DatastoreID: 1, Size: 256 * mebi, Persistent: true,
		Format: "raw", Digest: "blake3:dd", Source: "image-4", RegTime: today.Unix()}, StateName: "USED_PERS", TypeName: "DATABLOCK", VMs: []int{3},
		Owner: &api.Owner{Host: "node-1", Machine: 3, Generation: 7, Undrained: true}})
	c.server.Put(cloud.KindImage, api.Image{Image: cloud.Image{ID: 2, Name: "big", State: cloud.ImageStateLocked, DatastoreID: 1}, StateName: "LOCKED",
		TypeName: "OS", Done: 45, Total: 100})
	c.server.Put(cloud.KindImage, api.Image{Image: cloud.Image{ID: 3, Name: "bad", State: cloud.ImageStateError, DatastoreID: 1,
		Error: "digest is sha256:1, expected sha256:2"}, StateName: "ERROR", TypeName: "OS"})
	c.server.Put(cloud.KindDatastore, api.Datastore{Datastore: cloud.Datastore{ID: 1, Name: "default", Driver: "path", BasePath: "/var/lib/hayloft/datastores/1",
		Clusters: []int{0}}, TypeName: "IMAGE_DS", Images: []int{1, 2, 3}, TotalMB: 102400, FreeMB: 51200})
	text := "CPU=\"0.5\"\nMEMORY=\"128\"\nDISK=[\n  IMAGE=\"tiny\" ]\n"
	c.server.Put(cloud.KindTemplate, api.Template{VMTemplate: cloud.VMTemplate{ID: 4, Name: "web", RegTime: today.Unix(), Template: parsed(t, text)}, Text: text})
	c.server.Put(cloud.KindNetwork, api.Network{Network: cloud.Network{ID: 1, Name: "lan", VNMAD: "bridge", Bridge: "onebr1", Filter: true, NAT: true, Host: true,
		Clusters: []int{0}, Ranges: []cloud.AddressRange{{Attributes: map[string]string{"TYPE": "IP4", "IP": "10.20.0.2", "SIZE": "253", "MAC": "02:00:0a:14:00:02"}}},
		Template: parsed(t, `GATEWAY = 10.20.0.1 NETWORK_MASK = 255.255.255.0`)}, Size: 253,
		Leases: []cloud.Lease{{IP: "10.20.0.7", MAC: "02:00:0a:14:00:07", Index: 5, VM: 3}, {IP: "10.20.0.3", MAC: "02:00:0a:14:00:03", Index: 1, VM: -1}}})
	c.server.Put(cloud.KindCluster, api.Cluster{Cluster: cloud.Cluster{ID: 0, Name: "default"}, Hosts: []int{0, 1}, Networks: []int{1}, Datastores: []int{1}})
}

func TestTables(t *testing.T) {
	c := newConsole(t)
	furnish(t, c)
	for name, args := range map[string]string{
		"vm-list": "vm list", "vm-list-all": "machine ls --all", "host-list": "host list", "image-list": "image list", "datastore-list": "ds ls",
		"template-list": "template list", "network-list": "net list", "cluster-list": "cluster list",
		"vm-show": "vm show web-1", "vm-show-waiting": "vm show 4", "vm-show-failure": "vm show broken", "vm-show-copying": "vm show 6",
		"vm-show-draining": "vm show draining undrained", "image-show-owned": "image show data", "image-prefetches": "image prefetches tiny",
		"host-show": "host show node-1", "image-show": "image show tiny bad", "image-show-import": "image show big",
		"datastore-show": "datastore show 1", "template-show": "template show web", "network-show": "network show lan",
		"cluster-show": "cluster show default", "host-show-yaml": "host show node-1 -o yaml", "template-list-json": "template list -o json",
	} {
		t.Run(name, func(t *testing.T) {
			c.test = t
			got := c.ok(strings.Fields(args)...)
			if strings.ContainsAny(got, "\x1b\t") {
				t.Errorf("control characters in %q", got)
			}
			golden(t, name, got)
		})
	}
}

func TestFilters(t *testing.T) {
	c := newConsole(t)
	furnish(t, c)
	for args, want := range map[string]string{
		"vm list -o id":                                   "3 4 5 6 7 8",
		"vm list -o id --all":                             "2 3 4 5 6 7 8",
		"vm list -o id --state done":                      "2",
		"vm list -o id --state running":                   "3",
		"vm list -o id --state PEND --state BOOT_FAILURE": "4 5",
		"vm list -o id --state failure":                   "5",
		"vm list -o id --state active":                    "3 5 6 7",
		"vm list -o id --host node-1 --state prolog":      "6",
		"vm list -o id --host 1":                          "",
		"host list -o name":                               "node-1 node-2",
		"vm show 3..4 -o id":                              "3 4",
	} {
		if got := strings.Join(strings.Fields(c.ok(strings.Fields(args)...)), " "); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
	if message := c.fails(2, "vm", "list", "--state", "sleeping"); !strings.Contains(message, `"sleeping" is no state`) {
		t.Error(message)
	}
	if message := c.fails(3, "vm", "list", "--host", "nowhere"); !strings.Contains(message, "host nowhere does not exist") {
		t.Error(message)
	}
	if got := c.ok("vm", "list", "--host", "1", "-o", "json"); got != "[]\n" {
		t.Errorf("an empty list: %q", got)
	}
}

// Whatever the width of the terminal, no line is longer.
func TestTablesFit(t *testing.T) {
	c := newConsole(t)
	furnish(t, c)
	for _, kind := range []string{"vm", "host", "image", "datastore", "template", "network", "cluster"} {
		for width := 1; width < 120; width += 7 {
			c.screen = screen{width: width, height: 24}
			for line := range strings.Lines(c.ok(kind, "list")) {
				if got := runewidth.StringWidth(strings.TrimRight(line, "\n")); got > width {
					t.Errorf("%s list: %d cells in %d: %q", kind, got, width, line)
				}
			}
		}
	}
	c.screen = screen{width: 70, height: 24, color: true}
	golden(t, "vm-list-70", c.ok("vm", "list"))
	if got := c.ok("vm", "list", "--no-color"); strings.Contains(got, "\x1b") {
		t.Errorf("colours with --no-color: %q", got)
	}
}

// JSON and YAML say the same, and YAML reads back with the same strings.
func TestFormatsAgree(t *testing.T) {
	c := newConsole(t)
	furnish(t, c)
	c.server.Put(cloud.KindHost, api.Host{Host: cloud.Host{ID: 7, Name: "007", Error: "line\n  two: {x}\n", Version: "1.10"}, StateName: "on"})
	var fromJSON, fromYAML any
	if err := json.Unmarshal([]byte(c.ok("host", "list", "-o", "json")), &fromJSON); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(c.ok("host", "list", "-o", "yaml")), &fromYAML); err != nil {
		t.Fatal(err)
	}
	one, _ := json.Marshal(fromJSON)
	two, err := json.Marshal(fromYAML)
	if err != nil || string(one) != string(two) {
		t.Errorf("%v\n%s\n%s", err, one, two)
	}
}

func TestEveryCommandHasExample(t *testing.T) {
	var check func(*cobra.Command)
	count := 0
	check = func(cmd *cobra.Command) {
		count++
		if !strings.Contains(cmd.Example, "hayloft") || cmd.Short == "" {
			t.Errorf("%s has no example or no short help", cmd.CommandPath())
		}
		if cmd.HasSubCommands() == false && cmd.RunE == nil {
			t.Errorf("%s does nothing", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	root := newRootCommand(newApp())
	root.InitDefaultHelpCmd()
	check(root)
	if count < 60 {
		t.Errorf("only %d commands were seen", count)
	}
}

// Every example is one that the command line accepts, as far as that can be told without running it.
func TestExamplesParse(t *testing.T) {
	for _, cmd := range leaves(newRootCommand(newApp())) {
		for line := range strings.Lines(cmd.Example) {
			line, _, _ = strings.Cut(line, "  #")
			words := strings.Fields(line)
			at := 0
			for at < len(words) && words[at] != "hayloft" {
				at++
			}
			if at == len(words) || strings.ContainsAny(line, "'|<>") {
				continue
			}
			root := newRootCommand(newApp())
			found, rest, err := root.Find(words[at+1:])
			if err != nil || found.RunE == nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
}

func leaves(cmd *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		list = append(list, leaves(sub)...)
	}
	return list
}
