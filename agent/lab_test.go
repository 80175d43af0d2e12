package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/repository/drivers"
	"hayloft/disk/way"
	"hayloft/hypervisor"
	"hayloft/hypervisor/cgroup"
	"hayloft/hypervisor/lxc"
	"hayloft/hypervisor/qemu"
	"hayloft/image"
	"hayloft/internal/command"
	"hayloft/internal/leaktest"
	"hayloft/lab/labtest"
	"hayloft/network/bridge"
	"hayloft/wire"
)

// insideLab is set in the environment of a test process that has a network namespace of its own.
const insideLab = "HAYLOFT_AGENT_TEST_INSIDE"

// TestMain runs tests that use the lab in a network namespace and a mount namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv("HAYLOFT_LAB") != "1" || os.Geteuid() != 0 {
		leaktest.Main(m)
	}
	if os.Getenv(insideLab) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), insideLab+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "arranging the test's namespaces:", err)
		os.Exit(1)
	}
	leaktest.Main(m)
}

// labHost is a host with real drivers, on which agents come and go.
type labHost struct {
	*bench
	dir     string
	repo    *wire.Repository
	system  *wire.Repository
	closers []func()
}

func newLabHost(t *testing.T) *labHost {
	dir, err := os.MkdirTemp("", "hayloft-agent-") // t.TempDir is closed to QEMU's users
	if err != nil {
		t.Fatal(err)
	}
	h := &labHost{bench: newBench(t), dir: dir}
	h.pace = quick
	h.pace.askAgain, h.pace.usage = time.Second, time.Second // what ends between two agents is seen by a look at all
	t.Cleanup(func() {
		h.leave()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, err := range []error{os.Chmod(dir, 0o711), os.Mkdir(filepath.Join(dir, "images"), 0o755), os.Mkdir(filepath.Join(dir, "system"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.repo = &wire.Repository{Id: 1, Driver: "path", Path: filepath.Join(dir, "images")}
	h.system = &wire.Repository{Id: 2, Driver: "path", Path: filepath.Join(dir, "system")}
	return h
}

func (h *labHost) cgroup() string { return fmt.Sprintf("hayloft-agenttest-%d", os.Getpid()) }

// arrive begins a new agent with new drivers, as a restart of the process does.
func (h *labHost) arrive() {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(testLog{h.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	discard := slog.New(slog.DiscardHandler)
	q, err := qemu.New(qemu.Config{StateDir: filepath.Join(h.dir, "drivers", "qemu"), Accel: "tcg", CgroupRoot: h.cgroup(), Log: discard})
	if err != nil {
		h.t.Fatal(err)
	}
	h.closers = append(h.closers, func() { q.Close() })
	l, err := lxc.New(lxc.Config{StateDir: filepath.Join(h.dir, "drivers", "lxc"), CgroupRoot: h.cgroup(), Log: discard})
	if err != nil {
		h.t.Fatal(err)
	}
	h.closers = append(h.closers, func() { l.Close() })
	n, err := bridge.New(bridge.Config{Instance: "agenttest", Log: discard})
	if err != nil {
		h.t.Fatal(err)
	}
	h.closers = append(h.closers, func() { n.Close() })
	data, err := blockd.New(blockd.Config{StateDir: filepath.Join(h.dir, "blockd"), Log: discard})
	if err != nil {
		h.t.Fatal(err)
	}
	h.closers = append(h.closers, func() { data.Close() })
	w, err := way.New(way.Config{Root: filepath.Join(h.dir, "store"), Runner: command.Exec{}, Log: discard, GID: DefaultGID, Host: "node1", Data: data})
	if err != nil {
		h.t.Fatal(err)
	}
	a, err := New(Config{Name: "node1", StateDir: filepath.Join(h.dir, "agent"), Network: n, Way: w, Log: log,
		Hypervisors: map[string]hypervisor.Driver{"qemu": q, "lxc": l}})
	if err != nil {
		h.t.Fatal(err)
	}
	a.pace = h.pace
	ctx, cancel := context.WithCancel(context.Background())
	if err := a.open(ctx); err != nil {
		cancel()
		h.t.Fatal(err)
	}
	h.agent, h.end = a, cancel
}

func (h *labHost) leave() {
	h.stop()
	for _, closer := range h.closers {
		closer()
	}
	h.closers = nil
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (h *labHost) add(name string, kind image.Type, content []byte) *wire.Image {
	h.t.Helper()
	source := filepath.Join(h.t.TempDir(), name)
	if err := os.WriteFile(source, content, 0o600); err != nil {
		h.t.Fatal(err)
	}
	to, err := drivers.Open(disk.Repository{ID: 1, Driver: "path", Path: h.repo.Path})
	if err != nil {
		h.t.Fatal(err)
	}
	info, err := image.Import(h.t.Context(), image.ImportOptions{Source: source, Type: kind, To: to, Name: name, Runner: command.Exec{}})
	if err != nil {
		h.t.Fatal(err)
	}
	return &wire.Image{Id: 1, Name: name, Repository: h.repo, Source: name, Format: string(info.Format), Digest: info.Digest, Size: info.ObjectSize}
}

// sector is a boot sector that writes "up" to the serial port and then waits for ever.
func sector() []byte {
	code := []byte{0xba, 0xf8, 0x03, 0xb0, 'u', 0xee, 0xb0, 'p', 0xee, 0xb0, '\n', 0xee, 0xfb, 0xf4, 0xeb, 0xfd}
	disk := make([]byte, 1<<20)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}

// rootTree is an archive with busybox and an init that says on the console what its context is.
func rootTree(t *testing.T) []byte {
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	init := "#!/bin/sh\ntrap 'exit 0' PWR TERM\ncat /context/context.sh\nwhile :; do sleep 1 & wait; done\n"
	for _, entry := range []struct {
		name, content string
		kind          byte
	}{
		{"bin/", "", tar.TypeDir}, {"sbin/", "", tar.TypeDir}, {"proc/", "", tar.TypeDir}, {"sys/", "", tar.TypeDir}, {"dev/", "", tar.TypeDir},
		{"context/", "", tar.TypeDir}, {"bin/busybox", string(busybox), tar.TypeReg}, {"sbin/init", init, tar.TypeReg},
		{"bin/sh", "busybox", tar.TypeSymlink}, {"bin/cat", "busybox", tar.TypeSymlink}, {"bin/sleep", "busybox", tar.TypeSymlink},
	} {
		header := &tar.Header{Name: entry.name, Mode: 0o755, Typeflag: entry.kind}
		if entry.kind == tar.TypeSymlink {
			header.Linkname, entry.content = entry.content, ""
		}
		header.Size = int64(len(entry.content))
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, entry.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// wants is what is wanted of machine vm on the bench.
func (h *labHost) wants(vm int64, kind string, img *wire.Image, epoch uint64, goal wire.Goal, changes ...func(*wire.Assignment)) *wire.Assignment {
	return assignment(vm, epoch, goal, append([]func(*wire.Assignment){func(a *wire.Assignment) {
		a.System = h.system
		a.Machine.Hypervisor, a.Machine.Boot, a.Machine.ContextImages = kind, nil, nil
		a.Machine.MemoryMb, a.Machine.Cpu = 16, 0.1
		a.Machine.Disks[0].Image = img
		n := a.Machine.Nics[0]
		n.Mac, n.Ips, n.Filter = fmt.Sprintf("02:00:0a:4d:00:%02x", vm), []string{fmt.Sprintf("10.77.0.%d", vm)}, true
		n.Network = &wire.Network{Id: 7, Name: "net", Bridge: "onebr7", Gateway: "10.77.0.1/24"}
	}}, changes...)...)
}

// saysOnConsole waits until a machine has written the words to its console.
func (h *labHost) saysOnConsole(vm int64, kind, words string) {
	h.t.Helper()
	console := h.agent.cfg.Hypervisors[kind].(hypervisor.Consoler)
	var content []byte
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		content, _ = console.ConsoleLog(h.t.Context(), int(vm), 1<<16) // none yet
		if strings.Contains(string(content), words) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Fatalf("machine %d does not say %q: %q", vm, words, content)
}

func restore(a *wire.Assignment) { a.Restore = true }

// TestRealMachines leads a real virtual machine and a real container through their lives, with a restart
// of the agent and its drivers after every stage, and finds nothing of them in the end.
func TestRealMachines(t *testing.T) {
	labtest.Root(t, "qemu-system-x86_64", "qemu-img", "lxc-start", "busybox")
	h := newLabHost(t)
	t.Cleanup(func() {
		if tree, err := cgroup.New(h.cgroup()); err == nil {
			if err := tree.Remove(); err != nil {
				t.Error(err)
			}
		}
	})
	before, err := netlink.LinkList() // with some kernels more than the loopback
	if err != nil {
		t.Fatal(err)
	}
	h.arrive()
	disk, root := h.add("sector", image.OS, sector()), h.add("root.tar.gz", image.OS, rootTree(t))
	const vm, ct = 5, 6
	off := func(a *wire.Assignment) { a.ShutdownSeconds = int32(patience.Seconds()) }
	stages := []struct {
		vm, ct           *wire.Assignment
		vmPhase, ctPhase wire.Phase
	}{
		{h.wants(vm, "qemu", disk, 1, goalRunning), h.wants(ct, "lxc", root, 1, goalRunning), wire.Phase_PHASE_RUNNING, wire.Phase_PHASE_RUNNING},
		{h.wants(vm, "qemu", disk, 2, goalSuspended), h.wants(ct, "lxc", root, 2, goalOff, off), wire.Phase_PHASE_SUSPENDED, wire.Phase_PHASE_OFF},
		{h.wants(vm, "qemu", disk, 3, goalRunning, restore), h.wants(ct, "lxc", root, 3, goalRunning), wire.Phase_PHASE_RUNNING, wire.Phase_PHASE_RUNNING},
		{h.wants(vm, "qemu", disk, 4, goalStashed, func(a *wire.Assignment) { a.WithMemory = true }), h.wants(ct, "lxc", root, 4, goalStashed, hard), wire.Phase_PHASE_STASHED, wire.Phase_PHASE_STASHED},
		{h.wants(vm, "qemu", disk, 5, goalRunning, restore, func(a *wire.Assignment) { a.Unstash = true }),
			h.wants(ct, "lxc", root, 5, goalRunning, func(a *wire.Assignment) { a.Unstash = true }), wire.Phase_PHASE_RUNNING, wire.Phase_PHASE_RUNNING},
		{h.wants(vm, "qemu", disk, 6, goalOff, hard), h.wants(ct, "lxc", root, 6, goalSuspended), wire.Phase_PHASE_OFF, wire.Phase_PHASE_FAILED},
		{h.wants(vm, "qemu", disk, 7, goalGone, hard), h.wants(ct, "lxc", root, 7, goalGone, hard), wire.Phase_PHASE_GONE, wire.Phase_PHASE_GONE},
	}
	t.Cleanup(func() { // whatever fails, no process stays
		if h.agent == nil {
			h.arrive()
		}
		for _, driver := range h.agent.cfg.Hypervisors {
			for _, id := range []int{vm, ct} {
				_ = driver.Remove(context.Background(), id) // usually gone already
			}
		}
		_ = h.agent.cfg.Network.Cleanup(context.Background()) // so are these
		h.leave()
	})
	for _, stage := range stages {
		h.order(stage.vm, stage.ct)
		h.until(vm, stage.vm.Epoch, stage.vmPhase)
		h.until(ct, stage.ct.Epoch, stage.ctPhase)
		h.idle()
		if stage.vm.Epoch == 1 {
			h.saysOnConsole(vm, "qemu", "up")
			h.saysOnConsole(ct, "lxc", "ETH0_IP=10.0.0.5")
		}
		h.leave()
		h.arrive()
		h.idle()
		if v, c := h.report(vm).Phase, h.report(ct).Phase; v != stage.vmPhase || c != stage.ctPhase {
			t.Fatalf("after a restart: %v and %v, before: %v and %v", v, c, stage.vmPhase, stage.ctPhase)
		}
	}
	h.order()
	h.idle()
	here, err := h.agent.traces(t.Context())
	if err != nil || len(here) > 0 {
		t.Errorf("left: %v, %v", here, err)
	}
	if links, err := netlink.LinkList(); err != nil || len(links) != len(before) {
		t.Errorf("links left: %v, %v", links, err)
	}
	if left, err := filepath.Glob(filepath.Join(h.dir, "agent", "machines", "*")); err != nil || len(left) > 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(h.dir, "system", "machines", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("stash left: %v, %v", left, err)
	}
}
