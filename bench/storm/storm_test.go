package main

import (
	"strings"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/lab/fleet"
)

// TestTwin: everything that is the pattern's own becomes the twin's, and nothing else changes.
func TestTwin(t *testing.T) {
	p := &pattern{fleet: "hayloft-storm-abcdef", uid: 1007, gid: 9, vm: cloud.VM{ID: 7, Name: "tiny-vm-7",
		OS:   cloud.OS{UUID: "a0db68bc-e57b-4c8a-afd3-5dc39968949e"},
		NICs: []cloud.NIC{{IP: "10.66.0.17", MAC: "02:00:0A:42:00:11"}}}}
	s := &fleet.Site{Name: "hayloft-floor-ghijkl", Dir: "/tmp/hayloft-floor-ghijkl"}
	twin := p.twin(s, 30)
	if twin.uid != 1030 || twin.gid != 9 || twin.ip != "10.66.0.40" || twin.mac != "02:00:0a:42:00:28" {
		t.Errorf("%+v", twin)
	}
	for was, want := range map[string]string{
		"guest=tiny-vm-7,debug-threads=on":                                           "guest=floor-30,debug-threads=on",
		`"filename":"/tmp/hayloft-storm-abcdef/state/agent/machines/7/disks/disk.0"`: `"filename":"/tmp/hayloft-floor-ghijkl/state/agent/machines/30/disks/disk.0"`,
		`"mac":"02:00:0a:42:00:11"`:                                                  `"mac":"02:00:0a:42:00:28"`,
		"lxc.cgroup.dir.guest = hayloft-storm-abcdef/vm-7/g":                         "lxc.cgroup.dir.guest = hayloft-floor-ghijkl/vm-30/g",
		"one-7-0":            "one-30-0",
		"10.66.0.17/24":      "10.66.0.40/24",
		"10.66.0.1":          "10.66.0.1",
		"tcg,tb-size=32 -m7": "tcg,tb-size=32 -m7",
	} {
		if got := twin.change.Replace(was); got != want {
			t.Errorf("%s\nbecame %s\nwant   %s", was, got, want)
		}
	}
	if got := twin.change.Replace(p.vm.OS.UUID); got == p.vm.OS.UUID || len(got) != len(p.vm.OS.UUID) {
		t.Errorf("uuid %s", got)
	}
}

func TestContextOfTwin(t *testing.T) {
	p := &pattern{vm: cloud.VM{ID: 7, Name: "tiny-vm-7", OS: cloud.OS{UUID: "u"}, NICs: []cloud.NIC{{IP: "10.66.0.17", MAC: "02:00:0a:42:00:11"}},
		Context: map[string]string{"SET_HOSTNAME": "tiny-vm-7", "ETH0_IP": "10.66.0.17", "ETH0_GATEWAY": "10.66.0.1", "SSH_PUBLIC_KEY": "theirs", "VMID": "7"}}, fleet: "f"}
	files, err := p.context(p.twin(&fleet.Site{Name: "s", Dir: "/s"}, 2), "ours")
	if err != nil {
		t.Fatal(err)
	}
	text := string(files["context.sh"])
	for _, want := range []string{"SET_HOSTNAME='floor-2'", "ETH0_IP='10.66.0.12'", "ETH0_GATEWAY='10.66.0.1'", "SSH_PUBLIC_KEY='ours'", "VMID='2'"} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 2}, 3}, {[]float64{9, 1, 5}, 5}} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestFill(t *testing.T) {
	began := time.Unix(1000, 0)
	answered := fleet.Machine{Answered: began.Add(3 * time.Second)}
	answered.Timing.Running = began.Add(time.Second).UnixNano()
	failed := fleet.Machine{Err: errTest("gone")}
	var r result
	r.fill(began, []fleet.Machine{answered, failed})
	if r.Answered != 1 || r.FirstRunning != 1 || r.LastAnswer != 3 || len(r.Failed) != 1 {
		t.Errorf("%+v", r)
	}
	if err := (outcome{Runs: []measurement{{Hayloft: r}}}).failure(); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("%v", err)
	}
}

type errTest string

func (e errTest) Error() string { return string(e) }

func TestOptions(t *testing.T) {
	good := options{vms: 4, kind: "qemu", order: alternate, runs: 1, concurrency: 8}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*options){
		"-vms":   func(o *options) { o.vms = 201 },
		"-kind":  func(o *options) { o.kind = "xen" },
		"-order": func(o *options) { o.order = "random" },
		"-runs":  func(o *options) { o.runs = 0 },
	} {
		bad := good
		spoil(&bad)
		if err := bad.check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
