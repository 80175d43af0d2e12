package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor/qemu/qmp"
)

// A guest of a few bytes may take so long to run: an accelerator that does not work hangs, which emulation never does, only its
// start is slow on a slow host.
const (
	accelLimit   = 2 * time.Second
	emulateLimit = 2 * time.Minute
)

var errHangs = errors.New("a guest of a few bytes did not run")

// probe asks QEMU what it is and tries the accelerators.
func (d *Driver) probe(ctx context.Context) (*host, error) {
	h, err := d.interview(ctx)
	if err != nil {
		return nil, fmt.Errorf("qemu probe: %w", err)
	}
	if d.config.Accel != "" {
		if err := d.tryAccelerator(ctx, d.config.Accel, emulateLimit); err != nil {
			return nil, fault.Errorf(fault.Unsupported, "qemu probe: accelerator %s: %w", d.config.Accel, err)
		}
		h.Accelerator = d.config.Accel
		return h, nil
	}
	h.Accelerator = "kvm"
	kvm := d.tryAccelerator(ctx, "kvm", accelLimit)
	if kvm == nil {
		return h, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("qemu probe: %w", ctx.Err())
	}
	begun := time.Now()
	if err := d.tryAccelerator(ctx, "tcg", emulateLimit); err != nil {
		return nil, fault.Errorf(fault.Unsupported, "qemu probe: no accelerator works: kvm: %w; tcg: %w", kvm, err)
	}
	// On a host that is slow at the moment kvm had too little time, which shows in what emulation takes.
	if patience := min(10*time.Since(begun), emulateLimit); errors.Is(kvm, errHangs) && patience > accelLimit {
		if kvm = d.tryAccelerator(ctx, "kvm", patience); kvm == nil {
			return h, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("qemu probe: %w", ctx.Err())
		}
	}
	h.Accelerator = "tcg"
	h.Notes = append(h.Notes, "kvm is not used, machines are emulated and slow: "+kvm.Error())
	return h, nil
}

// interview asks a QEMU without a machine for its version and machine types.
func (d *Driver) interview(ctx context.Context) (*host, error) {
	ctx, cancel := context.WithTimeout(ctx, emulateLimit)
	defer cancel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "qmp"), os.NewFile(uintptr(pair[1]), "qmp")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, err
	}
	var stderr bytes.Buffer
	cmd := d.probeCommand(ctx, "-machine", "none", "-S", "-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, &stderr
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		conn.Close()
		return nil, err
	}
	h, err := askMachines(ctx, conn)
	cancel() // ends QEMU
	_ = cmd.Wait()
	if err != nil && stderr.Len() > 0 {
		err = fmt.Errorf("%s", strings.TrimSpace(stderr.String()))
	}
	return h, err
}

func askMachines(ctx context.Context, conn net.Conn) (*host, error) {
	client, err := qmp.Connect(ctx, conn)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var machines []struct{ Name, Alias string }
	if err := client.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return nil, err
	}
	h := &host{Version: "QEMU " + client.Version().String(), Machines: map[string]string{}}
	for _, m := range machines {
		for _, chipset := range []string{"pc", "q35", "microvm"} {
			// An alias leads to the newest version of a machine type, which is what must be remembered.
			if m.Alias == chipset || m.Name == chipset {
				h.Machines[chipset] = m.Name
			}
		}
	}
	if len(h.Machines) == 0 {
		return nil, errors.New("this QEMU has none of the machine types pc, q35 and microvm")
	}
	return h, nil
}

// probeCommand is a QEMU of the driver's own, under the user that machines run as.
func (d *Driver) probeCommand(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"-nodefaults", "-no-user-config", "-display", "none"}, args...)
	cmd := exec.CommandContext(ctx, d.binary, args...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: uint32(d.config.UID), Gid: uint32(d.config.GID), Groups: kvmGroup()}}
	}
	return cmd
}

// The guest of a few bytes: firmware that goes where every operating system goes, from real mode to long mode with
// paging, counts to a million, and reports through isa-debug-exit. An accelerator may run the first instructions of firmware, and
// still no kernel.
const (
	exitPort   = 0x501
	exitValue  = 0x2a
	exitStatus = exitValue<<1 | 1
)

// probeCode is at 0xf0000, to which the reset vector jumps.
var probeCode = []byte{
	0xfa, 0xfc, // cli; cld
	0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // xor ax, ax; mov ds, ax; mov es, ax
	0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xf3, 0xab, // mov di, 0x1000; mov cx, 0x1800; rep stosw: page tables
	0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, // mov word [0x1000], 0x2003: the fourth level,
	0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, // mov word [0x2000], 0x3003: the third,
	0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, // mov word [0x3000], 0x0083: and a page of 2 MiB
	0x2e, 0x66, 0x0f, 0x01, 0x16, 0x88, 0x00, // lgdt cs:[0x88]
	0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, // cr4 |= PAE
	0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, // cr3 = 0x1000
	0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, EFER
	0x0f, 0x32, 0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, // rdmsr; or eax, LME; wrmsr
	0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // cr0 |= PG | PE
	0x66, 0xea, 0x60, 0x00, 0x0f, 0x00, 0x08, 0x00, // jmp 8:0xf0060
	// 0x60, 64 bits:
	0xb9, 0x40, 0x42, 0x0f, 0x00, // mov ecx, 1000000
	0xff, 0xc9, 0x75, 0xfc, // dec ecx; jnz there
	0x66, 0xba, exitPort & 0xff, exitPort >> 8, // mov dx, exitPort
	0xb0, exitValue, 0xee, // mov al, exitValue; out dx, al
	0xf4, 0xeb, 0xfd, // hlt for ever
	0, 0, 0, 0, 0,
	// 0x78, descriptors: none, and code of 64 bits
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0x00, 0x9a, 0x20, 0x00,
	// 0x88, what lgdt reads: their length less 1, and where they are
	0x0f, 0x00, 0x78, 0x00, 0x0f, 0x00,
}

func probeFirmware() []byte {
	rom := make([]byte, 64<<10)
	copy(rom, probeCode)
	copy(rom[len(rom)-16:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0}) // the reset vector: jmp 0xf000:0
	return rom
}

// tryAccelerator runs the guest under accel, with the processor that machines get. An accelerator whose device opens may
// still not run a single instruction.
func (d *Driver) tryAccelerator(ctx context.Context, accel string, limit time.Duration) error {
	fd, err := unix.MemfdCreate("firmware", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	rom := os.NewFile(uintptr(fd), "firmware")
	defer rom.Close()
	if _, err := rom.Write(probeFirmware()); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := d.probeCommand(limited, "-machine", "pc", "-accel", accel, "-cpu", cpuOf(accel), "-m", "1", "-bios", "/proc/self/fd/3",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", exitPort))
	var stderr bytes.Buffer
	cmd.ExtraFiles, cmd.Stderr = []*os.File{rom}, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == exitStatus:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("%w within %v", errHangs, limit.Round(time.Second))
	case stderr.Len() > 0:
		return errors.New(strings.Join(strings.Split(strings.TrimSpace(stderr.String()), "\n"), "; "))
	case err == nil:
		return errors.New("the guest ended in another way than it should")
	}
	return err
}
