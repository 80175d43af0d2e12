package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hayloft/lab/labtest"
	"hayloft/network"
)

const (
	insideVariable = "HAYLOFT_TEST_NAMESPACE"

	// patience is how long a test waits for what must come, on a machine with much else to do.
	patience = 2 * time.Minute
)

// isolated runs a test in a process of its own with an empty network namespace, which the kernel removes with
// everything in it when the process ends, however it ends.
func isolated(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	labtest.Root(t, "ip", "nft")
	if os.Getenv(insideVariable) != "" {
		run(t, "ip", "link", "set", "lo", "up")
		test(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("in its namespace: %v", err)
	}
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
	return string(out)
}

func newDriver(t *testing.T) *Driver {
	t.Helper()
	d, err := New(Config{Instance: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

var barn = network.Network{ID: 3, Name: "barn", Bridge: "hbr3", Gateway: netip.MustParsePrefix("10.0.0.1/24")}

// guest is a network namespace with one link, the other end of a port.
type guest struct {
	t   *testing.T
	ns  netns.NsHandle
	mac net.HardwareAddr
	raw int // packet socket on its link
}

// inNamespace makes a fresh namespace when ns is closed, and runs f in ns on a thread of its own.
func inNamespace(t *testing.T, ns *netns.NsHandle, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		if *ns == netns.None() {
			*ns, err = netns.New()
		} else {
			err = netns.Set(*ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// newGuest makes the veth port by hand, as a container's runtime would, with the address inside.
func newGuest(t *testing.T, port, mac, address, bridge string) *guest {
	t.Helper()
	g := &guest{t: t, ns: netns.None(), raw: -1}
	g.mac, _ = net.ParseMAC(mac)
	inNamespace(t, &g.ns, func() error { return nil })
	t.Cleanup(func() { g.ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: g.mac, PeerNamespace: netlink.NsFd(g.ns)}
	check(t, netlink.LinkAdd(veth))
	if bridge != "" {
		run(t, "ip", "link", "set", port, "master", bridge)
	}
	run(t, "ip", "link", "set", port, "up")
	inNamespace(t, &g.ns, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if address != "" {
			addr, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		g.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(swap(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		return unix.Bind(g.raw, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
	})
	t.Cleanup(func() { unix.Close(g.raw) })
	check(t, unix.SetsockoptTimeval(g.raw, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}))
	return g
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

func (g *guest) send(frame []byte) {
	g.t.Helper()
	if _, err := unix.Write(g.raw, frame); err != nil {
		g.t.Fatal(err)
	}
}

// settle returns once a frame of g's arrives. The kernel tells a bridge later, from a queue of its own, that a port's
// link is up, and drops what is sent until then.
func (g *guest) settle(arrived func(frame []byte) bool) {
	g.t.Helper()
	frame := etherFrame(bytes.Repeat([]byte{0xff}, 6), g.mac, typeRARP, []byte("settle"))
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if g.send(frame); arrived(frame) {
			return
		}
	}
	g.t.Fatal("no frame arrives")
}

// receives tells whether the frame comes within 50 ms.
func (g *guest) receives(frame []byte) bool {
	buffer := make([]byte, 2048)
	for deadline := time.Now().Add(50 * time.Millisecond); ; {
		wait := time.Until(deadline)
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(g.raw), Events: unix.POLLIN}}, max(0, int(wait.Milliseconds()))); n <= 0 && wait <= 0 {
			return false
		}
		if n, _, err := unix.Recvfrom(g.raw, buffer, unix.MSG_DONTWAIT); err == nil && bytes.Equal(buffer[:n], frame) {
			return true
		}
	}
}

// inOrder sends frames so that they arrive in this order. A processor has a queue of its own for what has come over a
// veth, and may be late with it: a frame that is sent on another one then overtakes.
func (g *guest) inOrder(frames ...[]byte) {
	g.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var allowed, one unix.CPUSet
	check(g.t, unix.SchedGetaffinity(0, &allowed))
	for cpu := 0; one.Count() == 0; cpu++ {
		if allowed.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	check(g.t, unix.SchedSetaffinity(0, &one))
	for _, frame := range frames {
		g.send(frame)
	}
	check(g.t, unix.SchedSetaffinity(0, &allowed))
}

// passes tells whether g's frame arrives at the other guest: it is followed by a frame that does, so nothing
// waits for a time-out.
func (g *guest) passes(to *guest, frame, marker []byte) bool {
	g.t.Helper()
	g.inOrder(frame, marker)
	if binary.BigEndian.Uint16(frame[12:]) == 0x8100 { // packet sockets get the tag beside the frame
		frame = slices.Concat(frame[:12], frame[16:])
	}
	seen := false
	buffer := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(to.raw, buffer, 0)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			g.t.Fatalf("marker did not arrive: %v", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		// The bridge may cut the padding off IP packets.
		if n >= 34 && bytes.HasPrefix(frame, buffer[:n]) {
			seen = true
		}
		if bytes.Equal(buffer[:n], marker) {
			return seen
		}
	}
	g.t.Fatal("marker did not arrive")
	return false
}

func etherFrame(destination, source net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	frame := slices.Concat(destination, source, binary.BigEndian.AppendUint16(nil, kind), slices.Concat(payload...))
	return append(frame, make([]byte, max(0, 60-len(frame)))...)
}

func ip4Packet(source, destination string, proto byte, payload []byte) []byte {
	h := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	h = slices.Concat(h, netip.MustParseAddr(source).AsSlice(), netip.MustParseAddr(destination).AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return append(h, payload...)
}

func ip6Packet(source, destination string, proto byte, payload []byte) []byte {
	h := []byte{0x60, 0, 0, 0, 0, byte(len(payload)), proto, 255}
	return slices.Concat(h, netip.MustParseAddr(source).AsSlice(), netip.MustParseAddr(destination).AsSlice(), payload)
}

func udp(source, destination uint16) []byte {
	u := binary.BigEndian.AppendUint16(nil, source)
	u = binary.BigEndian.AppendUint16(u, destination)
	return append(u, 0, 12, 0, 0, 'd', 'a', 't', 'a')
}

func arpPacket(op byte, senderMAC net.HardwareAddr, sender, target string) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, senderMAC, netip.MustParseAddr(sender).AsSlice(),
		make([]byte, 6), netip.MustParseAddr(target).AsSlice())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// first returns whichever of the frames arrives first.
func (g *guest) first(frames ...[]byte) []byte {
	g.t.Helper()
	buffer := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(g.raw, buffer, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			g.t.Fatal(err)
		}
		for _, f := range frames {
			if bytes.Equal(buffer[:max(n, 0)], f) {
				return f
			}
		}
	}
	g.t.Fatal("no frame arrived")
	return nil
}
