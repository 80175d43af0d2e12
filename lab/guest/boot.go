package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"hayloft/cloud/fault"
	"hayloft/hypervisor/qemu/tsc"
	"hayloft/lab/golden"
	"hayloft/lab/guest/channel"
)

const (
	consoleFile   = "console.log"
	defaultMemory = 768 // MiB
	// processor has what makes checksums of file systems cheap, and a random number generator.
	processor = "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq"
)

// boot is one QEMU.
type boot struct {
	process *os.Process
	socket  net.Conn
	conn    *channel.Conn
	calls   *calls
	done    chan struct{} // closed when QEMU has ended
	err     error         // how, valid when done is closed
	disks   []*serving
}

// launch starts QEMU and waits until the guest is ready.
func (g *Guest) launch(ctx context.Context) (*boot, error) {
	socket, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	b := &boot{socket: socket, conn: channel.New(socket), calls: newCalls(), done: make(chan struct{})}
	files := []*os.File{theirs}
	for _, d := range g.config.Disks {
		if d.Volatile && err == nil {
			var s *serving
			if s, err = serve(d.File); err == nil {
				b.disks = append(b.disks, s)
				files = append(files, s.theirs)
			}
		}
	}
	if err == nil {
		err = b.start(g.commandLine(), files, g.config.Dir)
	}
	for _, f := range files {
		f.Close() // or the end of QEMU would not be seen
	}
	if err != nil {
		_, ended := b.endDisks(nil)
		return nil, errors.Join(err, ended, socket.Close())
	}
	ready := make(chan error, 1)
	go b.receive(ready)
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		_, killed := b.kill(nil)
		return nil, fmt.Errorf("%w; console: %s", errors.Join(err, killed), g.Console())
	}
	return b, nil
}

// commandLine is QEMU's, with whatever it must run in.
func (g *Guest) commandLine() []string {
	c := g.config
	memory, cpus := max(c.Memory, 0), max(c.CPUs, 1)
	if memory == 0 {
		memory = defaultMemory
	}
	line := golden.CmdlinePC + " programs=" + device(1+len(c.Disks))
	// On a busy machine the guest measures its counter wrongly, as that is emulated, and its clock goes many times too fast.
	if kHz, err := tsc.KHz(); err == nil {
		line += fmt.Sprintf(" tsc_early_khz=%d", kHz)
	}
	var network []string
	switch {
	case c.Network.Tap != "":
		network = []string{"-netdev", "tap,id=net,script=no,downscript=no,ifname=" + c.Network.Tap, "-device", "virtio-net-pci,netdev=net"}
		line += " address=" + c.Network.Address
		if c.Network.Gateway != "" {
			line += " gateway=" + c.Network.Gateway
		}
	case c.Network.Outside:
		network = []string{"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"}
		line += " address=10.0.2.15/24 gateway=10.0.2.2"
	}
	var args []string
	if c.Network.Namespace != "" {
		args = append(args, "nsenter", "--net="+c.Network.Namespace)
	}
	args = append(args, "qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-M", "pc", "-accel", "tcg,tb-size=128", "-cpu", processor, "-m", strconv.Itoa(memory), "-smp", strconv.Itoa(cpus),
		"-kernel", g.image.Kernel, "-initrd", g.image.Initrd, "-append", line, "-serial", "file:"+filepath.Join(c.Dir, consoleFile),
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,fd=3", "-device", "virtserialport,chardev=port,name="+channel.PortName,
		"-drive", "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file="+escape(g.image.Root), "-device", "virtio-blk-pci,drive=root")
	socket := 4 // file descriptor of the first volatile disk, after the serial port's
	for i, d := range c.Disks {
		id := fmt.Sprintf("disk%d", i)
		if d.Volatile {
			args = append(args, "-blockdev", fmt.Sprintf("nbd,node-name=%s,discard=unmap,server.type=fd,server.str=%d", id, socket))
			socket++
		} else {
			args = append(args, "-drive", "if=none,format=raw,cache=writeback,discard=unmap,detect-zeroes=unmap,id="+id+",file="+escape(d.File))
		}
		args = append(args, "-device", "virtio-blk-pci,write-cache=on,serial="+id+",drive="+id)
	}
	args = append(args, "-drive", "if=none,id=programs,format=raw,readonly=on,file="+escape(g.programs), "-device", "virtio-blk-pci,drive=programs")
	return append(args, network...)
}

// escape keeps commas of a file name out of QEMU's options.
func escape(name string) string { return strings.ReplaceAll(name, ",", ",,") }

// start starts QEMU, which ends with this process: the kernel ends it when the thread ends that started it, so that
// thread is kept until then.
func (b *boot) start(args []string, files []*os.File, dir string) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		var stderr bytes.Buffer
		cmd := exec.Command(args[0], args[1:]...)
		cmd.ExtraFiles, cmd.Stderr = files, &stderr
		cmd.Env = append(os.Environ(), "TMPDIR="+dir) // for what the snapshot of the root holds
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := cmd.Start()
		b.process = cmd.Process
		started <- err
		if err != nil {
			return
		}
		if err := cmd.Wait(); err != nil {
			b.err = fmt.Errorf("QEMU: %w: %s", err, strings.TrimSpace(stderr.String()))
		}
		close(b.done)
	}()
	return <-started
}

// receive hands what comes from the guest to those who wait for it, until the guest ends.
func (b *boot) receive(ready chan<- error) {
	for {
		f, err := b.conn.Receive()
		if err != nil {
			<-b.done // QEMU has closed its end
			err = fault.Errorf(fault.Unavailable, "it has ended (%w)", firstOf(b.err, err))
			ready <- err // for nobody, when it was ready once
			b.calls.fail(err)
			return
		}
		if f.Kind == channel.Ready {
			ready <- nil
			ready = make(chan error, 1)
			continue
		}
		b.calls.deliver(f)
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// kill ends QEMU; with a source of chance, volatile disks lose what they may.
func (b *boot) kill(random *rand.Rand) (Loss, error) {
	b.process.Kill() // harmless when it has ended
	<-b.done
	loss, err := b.endDisks(random)
	return loss, errors.Join(err, b.socket.Close())
}

func (b *boot) endDisks(random *rand.Rand) (Loss, error) {
	var all Loss
	var errs []error
	for _, s := range b.disks {
		dirty, lost, err := s.end(random)
		all.Unflushed += dirty
		all.Lost += lost
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

func (b *boot) powerOff(ctx context.Context) error {
	err := b.conn.Send(channel.Frame{Kind: channel.PowerOff})
	if err == nil {
		select {
		case <-b.done:
			err = b.err
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	_, ended := b.kill(nil)
	return errors.Join(err, ended)
}

func (b *boot) cpuSeconds() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	const ticksPerSecond = 100 // USER_HZ of amd64
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / ticksPerSecond
}
