package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/device"
	"hayloft/hypervisor"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
	"hayloft/lab/port"
)

// lab is a driver and its state directory for one test.
type lab struct {
	*testing.T
	d     *Driver
	state string
}

func newLab(t *testing.T) *lab {
	labtest.Root(t, "qemu-system-x86_64")
	l := &lab{T: t, state: t.TempDir()}
	t.Cleanup(func() { removeGroups(t) })
	l.d = openOnly(t, Config{StateDir: l.state})
	t.Cleanup(func() { l.d.Close() })
	return l
}

// start starts m, to be removed at the end also when the test fails, and waits until its guest is up.
func (l *lab) start(m hypervisor.Machine) {
	l.Helper()
	l.Cleanup(func() {
		if err := l.d.Remove(context.Background(), m.ID); err != nil {
			l.Error(err)
		}
	})
	if err := l.d.Start(l.Context(), m); err != nil {
		l.Fatal(err)
	}
	l.await("guest is up", func() bool { return l.boots(m.ID) > 0 })
}

// restart is the driver's end and a new one over the same state.
func (l *lab) restart(meanwhile func()) {
	l.d.Close()
	meanwhile()
	l.d = openOnly(l.T, Config{StateDir: l.state})
}

func (l *lab) boots(id int) int {
	l.Helper()
	text, err := l.d.ConsoleLog(l.Context(), id, 1<<20)
	if err != nil {
		l.Fatal(err)
	}
	return strings.Count(string(text), bootMark)
}

func (l *lab) domain(id int) hypervisor.Domain {
	domains, _ := l.d.List(l.Context())
	for _, d := range domains {
		if d.ID == id {
			return d
		}
	}
	return hypervisor.Domain{}
}

// longest is how long tests wait for what must come, on a machine with much else to do.
const longest = 4 * time.Minute

func (l *lab) await(what string, holds func() bool) {
	l.Helper()
	for deadline := time.Now().Add(longest); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			domains, _ := l.d.List(l.Context())
			l.Fatalf("not within %s: %s; domains: %+v", longest, what, domains)
		}
	}
}

func TestProcessIsConfined(t *testing.T) {
	l := newLab(t)
	m := guest(t, 1)
	m.Graphics = &hypervisor.Graphics{Type: "vnc", Port: freePort(t), Password: "sesame"}
	l.start(m)
	pid := l.domain(1).PID
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t4321\t4321\t4321\t4321\n", "Gid:\t4321\t4321\t4321\t4321\n", "Groups:\t \n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d, %v; want its own", sid, err)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(groups), cgroupRoot()+"/qemu-1") {
		t.Errorf("not in its control group: %s, %v", groups, err)
	}
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || strings.Contains(string(arguments), "sesame") {
		t.Errorf("the password is on the command line, or %v", err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.Graphics.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if banner, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(banner, "RFB 003.") {
		t.Fatalf("banner %q, %v", banner, err)
	}
	io.WriteString(conn, "RFB 003.008\n")
	security := make([]byte, 2)
	if _, err := io.ReadFull(r, security); err != nil || security[0] != 1 || security[1] != 2 {
		t.Errorf("security types %v, %v; want VNC authentication (2) only", security, err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	free, err := port.Free("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return free
}

func TestWaysToEnd(t *testing.T) {
	l := newLab(t)
	panics, resets := guest(t, 2), guest(t, 3)
	l.start(panics)
	l.start(resets)
	press(t, l.d, panics, typePanic)
	l.await("guest has panicked", func() bool { return l.domain(2).Status == hypervisor.Crashed })
	if d := l.domain(2); !strings.Contains(d.Reason, "panicked") || d.PID != 0 {
		t.Errorf("%+v", d)
	}
	press(t, l.d, resets, typeReset)
	l.await("second boot", func() bool { return l.boots(3) == 2 })
	press(t, l.d, resets, typeTriple) // what a PC does: it resets
	l.await("third boot", func() bool { return l.boots(3) == 3 })
	if d := l.domain(3); d.Status != hypervisor.Running {
		t.Errorf("%+v", d)
	}
	if err := unix.Kill(l.domain(3).PID, unix.SIGTERM); err != nil { // somebody else's doing
		t.Fatal(err)
	}
	l.await("death by SIGTERM", func() bool { return l.domain(3).Status == hypervisor.Crashed })
	if d := l.domain(3); !strings.Contains(d.Reason, "signal 15") {
		t.Errorf("reason %q lacks QEMU's own words", d.Reason)
	}
}

func TestQEMUThatDiesAtOnceSaysWhy(t *testing.T) {
	l := newLab(t)
	m := guest(t, 4)
	m.Disks[0].Device.Path = filepath.Join(m.Dir, "absent")
	err := l.d.Start(t.Context(), m)
	if err == nil || !strings.Contains(err.Error(), "domain 4: qemu: ") || !strings.Contains(err.Error(), "absent': No such file or directory") {
		t.Errorf("got %v, want QEMU's own words", err)
	}
	m = guest(t, 5)
	m.Raw = "-bogus"
	if err := l.d.Start(t.Context(), m); err == nil || !strings.Contains(err.Error(), "-bogus: invalid option") {
		t.Errorf("got %v, want QEMU's own words", err)
	}
	for _, m := range []hypervisor.Machine{m, guest(t, 4)} {
		if left := leftovers(t, m); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestAdoptionFinishesWhatWasUnderWay(t *testing.T) {
	l := newLab(t)
	frozen, saving, started := guest(t, 10), guest(t, 11), guest(t, 12)
	for _, m := range []hypervisor.Machine{frozen, saving, started} {
		l.start(m)
	}
	partial := filepath.Join(t.TempDir(), "partial")
	pid := l.domain(12).PID
	// What a driver leaves that is killed inside Freeze, Save and Start.
	if err := l.d.stopGuest(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if _, err := l.d.claim(l.d.find(11), partial); err != nil {
		t.Fatal(err)
	}
	if err := l.d.command(t.Context(), l.d.find(11), "stop"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(partial, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	half := l.d.find(12).record()
	half.Phase, half.PID = starting, 0
	if err := l.d.store(half); err != nil {
		t.Fatal(err)
	}
	l.restart(func() {})
	for _, id := range []int{10, 11} {
		l.await("the machine goes on", func() bool { return l.domain(id).Status == hypervisor.Running && !l.adopting(id) })
	}
	if _, err := os.Stat(partial); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the incomplete saved state is still there: %v", err)
	}
	if dom := l.d.find(12); dom != nil { // it has run nothing: it may be started again
		t.Errorf("the interrupted start is listed: %+v", dom.record())
	}
	if _, err := os.Stat(half.runtimeDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files of the interrupted start: %v", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d of the interrupted start: %v", pid, err)
	}
}

// adopting says whether a domain has yet to answer to the driver that has adopted it.
func (l *lab) adopting(id int) bool {
	dom := l.d.find(id)
	dom.mu.Lock()
	defer dom.mu.Unlock()
	return dom.adopting
}

func TestSoftRebootSurvivesTheDriver(t *testing.T) {
	l := newLab(t)
	m := guest(t, 13)
	l.start(m)
	if err := l.d.change(l.d.find(13), func(r *record) { r.Reboot = true }); err != nil {
		t.Fatal(err)
	}
	l.restart(func() { powerOffAway(t, m) })
	l.await("second boot", func() bool { return l.boots(13) == 2 })
	press(t, l.d, m, typePowerOff) // and this one is for good
	l.await("off", func() bool { return l.domain(13).Status == hypervisor.Off })
}

func TestAnotherProcessWithOurPID(t *testing.T) {
	l := newLab(t)
	m := guest(t, 14)
	l.start(m)
	l.restart(func() {
		r := l.d.find(14).record()
		proc, err := os.FindProcess(r.PID)
		if err != nil || proc.Kill() != nil {
			t.Fatal("cannot kill")
		}
		if _, err := proc.Wait(); err != nil {
			t.Fatal(err)
		}
		r.PID = os.Getpid() // as if the number had been given to us meanwhile
		if err := l.d.store(r); err != nil {
			t.Fatal(err)
		}
	})
	if d := l.domain(14); d.Status != hypervisor.Crashed {
		t.Errorf("%+v, want crashed", d)
	}
}

func TestSavedMachineGoesOnOnAnotherHost(t *testing.T) {
	l := newLab(t)
	m := guest(t, 15)
	l.start(m)
	path := filepath.Join(t.TempDir(), "saved")
	if err := l.d.Save(t.Context(), 15, path); err != nil {
		t.Fatal(err)
	}
	saved, f, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if !strings.HasPrefix(saved.Platform.Machine, "pc-i440fx-") {
		t.Errorf("machine type %s is not versioned", saved.Platform.Machine)
	}
	there := &lab{T: t, state: t.TempDir()}
	there.d = open(t, Config{StateDir: there.state})
	m.Restore = path
	m.Dir = machineDir(t, 15)
	begun := time.Now()
	if err := there.d.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	t.Logf("restored in %v", time.Since(begun))
	defer there.d.Remove(context.Background(), 15)
	c, err := there.d.Console(t.Context(), 15)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := time.AfterFunc(longest, func() { c.Close() })
	defer stop.Stop()
	io.WriteString(c, "z")
	if b := make([]byte, 1); true {
		if _, err := io.ReadFull(c, b); err != nil || b[0] != 'z' {
			t.Errorf("echo %q, %v", b, err)
		}
	}
	if n := there.boots(15); n != 0 {
		t.Errorf("the restored guest has booted %d times", n)
	}
	m.MemoryMB++
	m.ID, m.Dir = 16, machineDir(t, 16)
	if err := there.d.Start(t.Context(), m); !fault.Is(err, fault.Invalid) {
		t.Errorf("restored with other memory: %v", err)
	}
	if err := os.Truncate(path, 3*headerSize); err != nil {
		t.Fatal(err)
	}
	m.MemoryMB--
	if err := there.d.Start(t.Context(), m); err == nil {
		t.Error("restored from a truncated state")
	}
	if left := leftovers(t, m); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDevices boots the guest from every kind of disk that real parts are at hand for, with NICs.
func TestDevices(t *testing.T) {
	labtest.Root(t, "qemu-img", "qemu-nbd")
	l := newLab(t)
	tap := openTap(t)
	for i, tt := range []struct {
		chipset, target string
		kind            device.Kind
		format          device.Format
		nic             string
	}{
		{"pc", "sda", device.File, device.Raw, ""},
		{"pc", "hdb", device.File, device.QCOW2, "e1000"},
		{"q35", "vda", device.File, device.QCOW2, "virtio"},
		{"q35", "hdc", device.NBD, device.Raw, "rtl8139"},
		{"pc", "vdb", device.NBD, device.Raw, "e1000e"},
	} {
		t.Run(fmt.Sprint(tt.chipset, tt.target, tt.kind, tt.format), func(t *testing.T) {
			l := &lab{T: t, d: l.d, state: l.state}
			m := guest(t, 20+i)
			m.Boot.Chipset = tt.chipset
			m.NICs = []hypervisor.NIC{{ID: 0, MAC: "02:00:0a:00:00:01", Model: tt.nic, Tap: tap, MTU: 1400}}
			base, cdrom := m.Disks[0].Device.Path, filepath.Join(m.Dir, "disk.5")
			if err := os.WriteFile(cdrom, make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			disk := device.Device{Kind: tt.kind, Format: tt.format, Path: base}
			switch {
			case tt.kind == device.NBD:
				disk.Path, disk.Export = filepath.Join(m.Dir, "nbd.sock"), "disk, 0"
				serveNBD(t, base, disk.Path, disk.Export)
			case tt.format == device.QCOW2:
				disk.Path = filepath.Join(m.Dir, "overlay, \"1\".qcow2")
				run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, disk.Path)
			}
			if err := os.Chown(disk.Path, m.UID, m.GID); err != nil {
				t.Fatal(err)
			}
			m.Disks = []hypervisor.Disk{{ID: 4, Target: tt.target, Discard: true, Device: disk},
				{ID: 5, Target: "hda", CDROM: true, Device: device.Device{Kind: device.File, Path: cdrom}}}
			l.start(m)
		})
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := (command.Exec{}).Run(t.Context(), command.Cmd{Name: name, Args: args}); err != nil {
		t.Fatal(err)
	}
}

func serveNBD(t *testing.T, file, socket, export string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = command.Exec{}.Run(ctx, command.Cmd{Name: "qemu-nbd", Args: []string{"-t", "-f", "raw", "-k", socket, "-x", export, file}})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	for deadline := time.Now().Add(longest); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil { // the file is there before somebody listens
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("qemu-nbd does not start")
		}
	}
}

// openTap makes a tap in a network namespace that only its own thread and the tap keep alive.
func openTap(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			made <- result{nil, err}
			return
		}
		request, err := unix.NewIfreq("tap0")
		if err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		made <- result{os.NewFile(uintptr(fd), "tap0"), err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r.f
}
