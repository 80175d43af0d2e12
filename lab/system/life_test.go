package system

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/lab/golden"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// life is a product with the golden images.
type life struct {
	*product
	set golden.Set
	key string // file with the private key
}

func beginLife(t *testing.T) *life {
	t.Helper()
	return furnish(begin(t, nil))
}

// furnish gives a product the network and the golden images.
func furnish(p *product) *life {
	p.Helper()
	set, err := images()
	if err != nil {
		p.Fatal(err)
	}
	p.network()
	for _, i := range []struct{ name, kind, path string }{
		{"tiny", "OS", set.Disk}, {"tiny-kernel", "KERNEL", set.Kernel}, {"tiny-initrd", "RAMDISK", set.Initrd}, {"tiny-ct", "OS", set.Tar},
	} {
		p.image(fmt.Sprintf("NAME=%q TYPE=%s PATH=%q", i.name, i.kind, i.path))
	}
	l := &life{p, set, filepath.Join(p.site.Dir, "key")}
	if err := os.WriteFile(l.key, p.login.private, 0o600); err != nil {
		p.Fatal(err)
	}
	return l
}

// kernelBoot is a machine that is given kernel and initrd beside its disk.
func (l *life) kernelBoot(image, machine, command string) string {
	return fmt.Sprintf("CPU=0.2 MEMORY=96\nDISK=[IMAGE=%q]\nOS=[MACHINE=%s, KERNEL=\"tiny-kernel\", INITRD=\"tiny-initrd\", KERNEL_CMD=%q]\nNIC=[NETWORK=net]\n%s",
		image, machine, command, l.context())
}

// askBoot prints the kernel's boot and when process 1 began, which for a container is its own.
const askBoot = "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat"

// boot tells one boot of a machine from another.
func (l *life) boot(id int) string {
	l.Helper()
	return l.ssh(id, askBoot)
}

func (l *life) expect(what, got, want string) {
	l.Helper()
	if got != want {
		l.Errorf("%s: %q, want %q", what, got, want)
	}
}

// through asks for an action and waits for the state that it leads to.
func (l *life) through(id int, action, state string) {
	l.Helper()
	l.Logf("vm %d: %s", id, action)
	l.act(id, action)
	l.reaches(id, state)
}

// TestLifeOfAVirtualMachine leads a real virtual machine through everything that can be asked of it.
func TestLifeOfAVirtualMachine(t *testing.T) {
	l := beginLife(t)
	if _, err := l.client.CreateTemplate(l.ctx, "NAME=web\n"+l.kernelBoot("tiny", "pc", golden.CmdlinePC)); err != nil {
		t.Fatal(err)
	}
	// Held machines wait until they are released, or put on a host by hand.
	made := strings.Fields(l.must("-q", "vm", "create", "web", "--name", "web-%i", "--count", "3", "--hold"))
	if len(made) != 3 {
		t.Fatalf("vm create --count 3 made %v", made)
	}
	var ids []int
	for _, text := range made {
		id, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, vm := range l.reach(ids, "HOLD") {
		if vm.HostID >= 0 {
			t.Errorf("held vm %d is on host %d", vm.ID, vm.HostID)
		}
	}
	l.through(ids[2], "terminate", "DONE")
	l.must("vm", "deploy", made[0], hostName)
	l.must("vm", "release", made[1])
	id, other := ids[0], ids[1]
	l.reach([]int{id, other}, "RUNNING")
	l.expect("host name", l.ssh(id, "hostname"), "web-0")
	l.expect("host name of the other", l.ssh(other, "hostname"), "web-1")
	l.expect("hayloft vm ssh", l.must("vm", "ssh", "-i", l.key, made[0], "--", "hostname"), "web-0")
	address := l.reaches(id, "RUNNING").NICs[0].IP
	l.says("its address", l.ssh(id, "ip -4 -o addr show dev eth0"), address+"/24")
	l.through(other, "terminate-hard", "DONE")

	l.ssh(id, "echo precious > /root/data && sync")
	first := l.boot(id)
	l.through(id, "poweroff", "POWEROFF")
	if pids := l.qemus()[id]; len(pids) > 0 {
		t.Errorf("powered off, it has the processes %v", pids)
	}
	l.through(id, "resume", "RUNNING")
	l.expect("data after poweroff", l.ssh(id, "cat /root/data"), "precious")
	second := l.boot(id)
	if second == first {
		t.Error("poweroff and resume did not boot it anew")
	}

	// What runs goes on after suspend and stop.
	process := l.ssh(id, "(while :; do sleep 1; done) >/dev/null 2>&1 & echo $!")
	uptime := l.uptime(id)
	for _, way := range []struct{ action, state string }{{"suspend", "SUSPENDED"}, {"stop", "STOPPED"}} {
		l.through(id, way.action, way.state)
		if pids := l.qemus()[id]; len(pids) > 0 {
			t.Errorf("%s: it has the processes %v", way.state, pids)
		}
		if way.state == "STOPPED" {
			if left := l.machineDirs(); len(left) > 0 {
				t.Errorf("stopped, it has left %v on its host", left)
			}
		}
		l.through(id, "resume", "RUNNING")
		l.expect("boot after "+way.action, l.boot(id), second)
		l.ssh(id, "kill -0 "+process)
		now := l.uptime(id)
		if now < uptime {
			t.Errorf("after %s it is up for %v s, before %v", way.action, now, uptime)
		}
		uptime = now
	}

	l.through(id, "undeploy", "UNDEPLOYED")
	if left := l.machineDirs(); len(left) > 0 {
		t.Errorf("undeployed, it has left %v on its host", left)
	}
	l.through(id, "resume", "RUNNING")
	l.expect("data after undeploy", l.ssh(id, "cat /root/data"), "precious")
	l.reboots(id)
	l.expect("data after reboots", l.ssh(id, "cat /root/data"), "precious")

	l.saveWhileRunning(id)
	l.refused(fault.Unsupported, []string{"resize", "running", "power it off"}, "vm", "resize", made[0], "--memory", "160")
	had := l.memoryKB(id)
	l.through(id, "poweroff", "POWEROFF")
	l.must("vm", "resize", made[0], "--memory", "160")
	l.saveWhileOff(id)
	l.through(id, "resume", "RUNNING")
	if has := l.memoryKB(id); has < had+50<<10 {
		t.Errorf("resized from 96 to 160 MB it sees %d KB, before %d", has, had)
	}
	l.deploySaved("saved-running", "saved-off", func(image string) string { return l.kernelBoot(image, "pc", golden.CmdlinePC) })

	l.console(id)
	l.says("vm log", l.must("vm", "log", made[0]), "tiny: web-0 ready at "+address)
	l.saveWhenDone(id, func(image string) string { return l.kernelBoot(image, "pc", golden.CmdlinePC) })
	l.nothingOnHost()
}

// reboots asks for both kinds of reboots; each ends in another boot.
func (l *life) reboots(id int) {
	l.Helper()
	for _, action := range []string{"reboot", "reboot-hard"} {
		before := l.boot(id)
		l.Logf("vm %d: %s", id, action)
		l.act(id, action)
		l.eventually(action, func() error {
			now, err := l.trySSH(id, askBoot)
			if err == nil && now == before {
				err = fmt.Errorf("it is still boot %s", now)
			}
			return err
		})
		l.reaches(id, "RUNNING")
	}
}

func (l *life) uptime(id int) float64 {
	l.Helper()
	text, _, _ := strings.Cut(l.ssh(id, "cat /proc/uptime"), " ")
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		l.Fatal(err)
	}
	return seconds
}

func (l *life) memoryKB(id int) int {
	l.Helper()
	kB, err := strconv.Atoi(l.ssh(id, "awk '/MemTotal/ {print $2}' /proc/meminfo"))
	if err != nil {
		l.Fatal(err)
	}
	return kB
}

// saveWhileRunning saves the disk of a running machine, in which a file has been written.
func (l *life) saveWhileRunning(id int) {
	l.Helper()
	l.ssh(id, "echo running > /root/saved && sync")
	image, err := l.client.SaveAs(l.ctx, id, 0, "saved-running")
	if err != nil {
		l.Fatal(err)
	}
	l.imageReady(image)
	l.reaches(id, "RUNNING")
	l.ssh(id, "echo off > /root/saved && sync")
}

// saveWhileOff saves the disk of a powered-off machine as a user does.
func (l *life) saveWhileOff(id int) {
	l.Helper()
	l.must("vm", "disk-saveas", strconv.Itoa(id), "0", "saved-off")
	images, err := l.client.Images(l.ctx)
	if err != nil {
		l.Fatal(err)
	}
	at := slices.IndexFunc(images, func(i api.Image) bool { return i.Name == "saved-off" })
	if at < 0 {
		l.Fatal("there is no image saved-off")
	}
	l.imageReady(images[at].ID)
	l.reaches(id, "POWEROFF")
}

// saveWhenDone terminates a machine whose disk is wanted, and makes another one of a clone of what was saved.
func (l *life) saveWhenDone(id int, text func(image string) string) {
	l.Helper()
	l.ssh(id, "echo done > /root/saved && sync")
	l.must("vm", "disk-saveas", strconv.Itoa(id), "0", "saved-done", "--when-done")
	l.says("vm show", l.must("vm", "show", strconv.Itoa(id)), "is saved as saved-done")
	l.through(id, "terminate", "DONE")
	l.says("image show", l.must("image", "show", "saved-done"), fmt.Sprintf("vm %d, disk 0", id))
	l.must("image", "clone", "saved-done", "saved-clone")
	l.says("image show", l.must("image", "show", "saved-clone"), "CLONED FROM")
	l.must("image", "delete", "saved-done", "--wait")
	clone := l.create(api.CreateVMs{Text: text("saved-clone"), Name: "from-clone"})[0]
	l.reaches(clone, "RUNNING")
	l.expect("saved file", l.ssh(clone, "cat /root/saved"), "done")
	l.through(clone, "terminate-hard", "DONE")
	l.must("image", "delete", "saved-clone")
}

// deploySaved makes machines from the saved images: each has the file as it was when it was saved.
func (l *life) deploySaved(running, off string, text func(image string) string) {
	l.Helper()
	var ids []int
	for _, image := range []string{running, off} {
		ids = append(ids, l.create(api.CreateVMs{Text: text(image), Name: "from-" + image})...)
	}
	l.reach(ids, "RUNNING")
	for i, want := range []string{"running", "off"} {
		l.expect("saved file", l.ssh(ids[i], "cat /root/saved"), want)
		l.expect("data", l.ssh(ids[i], "cat /root/data"), "precious")
		l.act(ids[i], "terminate-hard")
	}
	l.reach(ids, "DONE")
	for _, image := range []string{running, off} {
		l.must("image", "delete", image)
	}
}

// console types on the console of a machine and reads its answer.
func (l *life) console(id int) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	console, err := l.client.Tunnel(ctx, id, client.TunnelConsole, 0)
	if err != nil {
		l.Fatal(err)
	}
	defer console.Close()
	stop := context.AfterFunc(ctx, func() { _ = console.Close() })
	defer stop()
	type step struct{ send, expect string }
	for _, s := range []step{{"\n", "# "}, {"echo $((6*7))-answered\n", "42-answered"}} {
		if _, err := console.Write([]byte(s.send)); err != nil {
			l.Fatal(err)
		}
		var heard []byte
		for chunk := make([]byte, 4096); !strings.Contains(string(heard), s.expect); {
			n, err := console.Read(chunk)
			if err != nil {
				l.Fatalf("console: %v after %q, waiting for %q", err, heard, s.expect)
			}
			heard = append(heard, chunk[:n]...)
		}
	}
}

// TestLifeOfAContainer leads a real container through everything that can be asked of it.
func TestLifeOfAContainer(t *testing.T) {
	l := beginLife(t)
	id := l.create(api.CreateVMs{Text: l.containerText(), Name: "ct"})[0]
	name := strconv.Itoa(id)
	address := l.reaches(id, "RUNNING").NICs[0].IP
	l.expect("host name", l.ssh(id, "hostname"), "ct")
	l.says("its address", l.ssh(id, "ip -4 -o addr show dev eth0"), address+"/24")

	l.ssh(id, "echo precious > /root/data && sync")
	for _, action := range []string{"suspend", "stop"} {
		l.refused(fault.Unsupported, []string{action, "container"}, "vm", action, name)
		l.reaches(id, "RUNNING")
	}
	for _, way := range []struct{ action, state string }{{"poweroff", "POWEROFF"}, {"undeploy", "UNDEPLOYED"}} {
		before := l.boot(id)
		l.through(id, way.action, way.state)
		if pids := l.monitors()[id]; len(pids) > 0 {
			t.Errorf("%s: it has the processes %v", way.state, pids)
		}
		l.through(id, "resume", "RUNNING")
		l.expect("data after "+way.action, l.ssh(id, "cat /root/data"), "precious")
		if l.boot(id) == before {
			t.Errorf("%s and resume did not boot it anew", way.action)
		}
	}
	l.reboots(id)
	l.saveWhileRunning(id)
	l.through(id, "poweroff-hard", "POWEROFF")
	l.saveWhileOff(id)
	l.through(id, "resume", "RUNNING")
	l.deploySaved("saved-running", "saved-off", func(image string) string {
		return strings.ReplaceAll(l.containerText(), "tiny-ct", image)
	})
	l.ssh(id, "setsid sh -i </dev/console >/dev/console 2>&1 &") // tiny has nobody on a container's console
	l.console(id)
	l.says("vm log", l.must("vm", "log", name), "tiny: ct ready at "+address)
	l.saveWhenDone(id, func(image string) string { return strings.ReplaceAll(l.containerText(), "tiny-ct", image) })

	id = l.one(l.containerText())
	l.reaches(id, "RUNNING")
	l.through(id, "terminate-hard", "DONE")
	l.nothingOnHost()
}

// TestEveryBoot boots from the disk alone and with the least machine that QEMU has.
func TestEveryBoot(t *testing.T) {
	l := beginLife(t)
	texts := map[string]string{
		"disk":    fmt.Sprintf("CPU=0.2 MEMORY=128\nDISK=[IMAGE=tiny]\nOS=[MACHINE=pc]\nNIC=[NETWORK=net]\n%s", l.context()),
		"microvm": l.kernelBoot("tiny", "microvm", golden.Cmdline),
	}
	machines := map[string]int{}
	for name, text := range texts {
		machines[name] = l.create(api.CreateVMs{Text: text, Name: name})[0]
	}
	for name, id := range machines {
		l.reaches(id, "RUNNING")
		l.expect("host name", l.ssh(id, "hostname"), name)
	}
	for _, id := range machines {
		l.through(id, "terminate", "DONE")
	}
	l.nothingOnHost()
}

// TestPersistentImage lets one machine write into an image, and only one.
func TestPersistentImage(t *testing.T) {
	l := beginLife(t)
	l.image(fmt.Sprintf("NAME=mine TYPE=OS PERSISTENT=YES PATH=%q", l.set.Disk))
	text := l.kernelBoot("mine", "pc", golden.CmdlinePC)
	id := l.one(text)
	l.reaches(id, "RUNNING")
	l.ssh(id, "echo kept > /root/kept && sync")
	_, err := l.client.CreateVMs(l.ctx, api.CreateVMs{Text: text})
	if err == nil {
		t.Error("a second machine may use a persistent image")
	} else {
		l.says("a second user of a persistent image", err.Error(), "mine", fmt.Sprintf("vm %d", id))
	}
	l.refused(fault.Busy, []string{"mine", "used"}, "image", "delete", "mine")
	l.through(id, "terminate", "DONE")
	again := l.one(text)
	l.reaches(again, "RUNNING")
	l.expect("what the first machine wrote", l.ssh(again, "cat /root/kept"), "kept")
	l.through(again, "terminate-hard", "DONE")
	l.nothingOnHost()
}
