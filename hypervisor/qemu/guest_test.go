package qemu

import (
	"os"
	"path/filepath"
	"testing"
)

// bootMark is what the guest writes once per boot.
const bootMark = "guest is up\n"

// Bytes that make the guest do something instead of echoing them.
const (
	typePowerOff = "\x01" // through ACPI
	typePanic    = "\x02" // through pvpanic
	typeReset    = "\x03" // through the keyboard controller
	typeTriple   = "\x04" // triple fault
)

// assembler writes 16-bit code with short jumps to labels.
type assembler struct {
	code   []byte
	labels map[string]int
	jumps  map[int]string
}

func (a *assembler) emit(b ...byte)    { a.code = append(a.code, b...) }
func (a *assembler) label(name string) { a.labels[name] = len(a.code) }
func (a *assembler) movDX(port int)    { a.emit(0xba, byte(port), byte(port>>8)) }
func (a *assembler) jump(op byte, to string) { // 0xeb jmp, 0x74 je, 0x75 jne
	a.emit(op, 0)
	a.jumps[len(a.code)-1] = to
}

// bootSector is a guest for SeaBIOS on pc and q35: it says that it is up, echoes what is typed on its
// console, obeys the bytes above, and powers off when its power button is pressed.
func bootSector(t testing.TB) []byte {
	a := &assembler{labels: map[string]int{}, jumps: map[int]string{}}
	a.emit(0xfa) // cli
	// A timer handler of our own, as SeaBIOS's would take what is typed.
	a.emit(0x31, 0xc0, 0x8e, 0xd8)             // xor ax, ax; mov ds, ax
	a.emit(0xc7, 0x06, 0x20, 0x00, 0x00, 0x7d) // mov word [0x20], 0x7d00
	a.emit(0xa3, 0x22, 0x00)                   // mov [0x22], ax
	a.movDX(0x602)                             // PM1 enable: power button, before anybody can know that we are up
	a.emit(0xb8, 0x00, 0x01, 0xef)             // mov ax, 0x100; out dx, ax
	a.movDX(0x3f8)
	for _, c := range []byte(bootMark) {
		a.emit(0xb0, c, 0xee) // mov al, c; out dx, al
	}
	a.label("loop")
	a.emit(0xfb, 0xf4, 0xfa) // sti; hlt until the next tick; cli
	a.label("poll")
	a.movDX(0x600) // PM1 status
	a.emit(0xed)   // in ax, dx
	a.emit(0xf6, 0xc4, 0x01)
	a.jump(0x75, "off")
	a.movDX(0x3fd)           // line status
	a.emit(0xec, 0xa8, 0x01) // in al, dx; test al, 1
	a.jump(0x74, "loop")
	a.movDX(0x3f8)
	a.emit(0xec) // in al, dx
	for value, name := range map[byte]string{1: "off", 2: "panic", 3: "reset", 4: "triple"} {
		a.emit(0x3c, value) // cmp al, value
		a.jump(0x74, name)
	}
	a.emit(0xee) // out dx, al
	a.jump(0xeb, "poll")
	a.label("off")
	a.movDX(0x604)                 // PM1 control: sleep, type 5
	a.emit(0xb8, 0x00, 0x20, 0xef) // mov ax, 0x2000; out dx, ax
	a.jump(0xeb, "loop")
	a.label("panic")
	a.movDX(0x505)
	a.emit(0xb0, 0x01, 0xee)
	a.jump(0xeb, "loop")
	a.label("reset")
	a.emit(0xb0, 0xfe, 0xe6, 0x64) // mov al, 0xfe; out 0x64, al
	a.jump(0xeb, "loop")
	a.label("triple")
	a.emit(0x0f, 0x01, 0x1e, 0x00, 0x06, 0xcc) // lidt [0x600], which holds zeroes; int3
	a.jump(0xeb, "loop")
	for at, to := range a.jumps {
		distance := a.labels[to] - at - 1
		if distance < -128 || distance > 127 {
			t.Fatalf("jump to %s is %d bytes far", to, distance)
		}
		a.code[at] = byte(distance)
	}
	if len(a.code) > 256 {
		t.Fatal("boot sector too long")
	}
	sector := make([]byte, 512)
	copy(sector, a.code)
	copy(sector[256:], []byte{0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf}) // push ax; mov al, 0x20; out 0x20, al; pop ax; iret
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// guestDisk writes the guest's disk into dir and returns its path.
func guestDisk(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "disk.0")
	if err := os.WriteFile(path, bootSector(t), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	return path
}
