package product

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"hayloft/server/api/client"
)

// access is what a machine does with one sector, and prints of it: the first eight bytes.
type access struct {
	disk   int // by its place in OS/BOOT
	sector uint32
	count  bool // adds one to the first byte, before it prints
}

const sectorSize = 512

// accessCode is a boot sector for a machine that goes through the list of accesses behind it, by the calls of its BIOS, prints them
// to its serial port, a line each, or "!" for one that failed, then ".", and waits for ever. It needs 60 ms of a processor and no
// kernel, which emulation within emulation would take minutes for.
var accessCode = []byte{
	0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // cli; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
	0xbc, 0x00, 0x7c, 0xfb, 0xfc, // mov sp, 0x7c00; sti; cld
	0xbe, 0xc0, 0x7c, // mov si, list
	// next:
	0xac, 0x84, 0xc0, 0x74, 0x47, // lodsb; test al, al; jz done
	0x88, 0xc3, 0xac, 0x88, 0xc2, // mov bl, al; lodsb; mov dl, al: the disk
	0x66, 0xad, 0x66, 0xa3, 0xb8, 0x7c, // lodsd; mov [packet+8], eax: the sector
	0x56, 0x53, 0x52, // push si; push bx; push dx
	0xb4, 0x42, 0xbe, 0xb0, 0x7c, 0xcd, 0x13, // mov ah, 0x42; mov si, packet; int 0x13: read
	0x5a, 0x5b, 0x72, 0x27, // pop dx; pop bx; jc bad
	0x80, 0xfb, '+', 0x75, 0x0e, // cmp bl, '+'; jne print
	0xfe, 0x06, 0x00, 0x80, // inc byte [0x8000]
	0xb8, 0x00, 0x43, 0xbe, 0xb0, 0x7c, 0xcd, 0x13, 0x72, 0x14, // mov ax, 0x4300; mov si, packet; int 0x13: write; jc bad
	// print:
	0xbe, 0x00, 0x80, 0xb9, 0x08, 0x00, // mov si, 0x8000; mov cx, 8
	0xac, 0xe8, 0x1e, 0x00, 0xe2, 0xfa, // again: lodsb; call put; loop again
	// line:
	0xb0, '\n', 0xe8, 0x17, 0x00, 0x5e, 0xeb, 0xbb, // mov al, '\n'; call put; pop si; jmp next
	// bad:
	0xb0, '!', 0xe8, 0x0f, 0x00, 0xeb, 0xf1, // mov al, '!'; call put; jmp line
	// done:
	0xb0, '.', 0xe8, 0x08, 0x00, 0xb0, '\n', 0xe8, 0x03, 0x00, // mov al, '.'; call put; mov al, '\n'; call put
	0xf4, 0xeb, 0xfd, // hlt for ever
	// put:
	0x52, 0x50, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, // push dx; push ax; wait for the port: in al, 0x3fd; test al, 0x20
	0x58, 0xba, 0xf8, 0x03, 0xee, 0x5a, 0xc3, // pop ax; mov dx, 0x3f8; out dx, al; pop dx; ret
}

// Offsets in the boot sector: what the BIOS is asked for, and the list of accesses.
const (
	packetAt = 0xb0
	listAt   = 0xc0
	endAt    = 510
)

// bootSector makes accessCode the first sector of a disk.
func bootSector(t *testing.T, disk []byte, list ...access) []byte {
	t.Helper()
	sector := disk[:sectorSize]
	clear(sector)
	copy(sector, accessCode)
	copy(sector[packetAt:], []byte{16, 0, 1, 0, 0x00, 0x80}) // one sector, to 0x8000
	at := sector[listAt:listAt]
	for _, a := range list {
		what := byte('r')
		if a.count {
			what = '+'
		}
		at = append(at, what, 0x80+byte(a.disk))
		at = binary.LittleEndian.AppendUint32(at, a.sector)
	}
	if len(at) >= endAt-listAt {
		t.Fatal("too many accesses")
	}
	sector[endAt], sector[endAt+1] = 0x55, 0xaa
	return disk
}

// mark puts a text at a sector of a disk.
func mark(disk []byte, sector int, text string) []byte {
	copy(disk[sector*sectorSize:], text)
	return disk
}

// probe is the text of a machine with the disks, which boots from the first and can reach all of them.
func probe(disks ...string) string {
	var text, order []string
	for i, d := range disks {
		text, order = append(text, "DISK=["+d+"]"), append(order, fmt.Sprintf("disk%d", i))
	}
	return fmt.Sprintf("NAME=probe CPU=0.1 MEMORY=16 OS=[MACHINE=pc, BOOT=%q]\n%s\n", strings.Join(order, ","), strings.Join(text, "\n"))
}

// console is what a machine's accesses printed since it was started last, when it has gone through all of them.
func (p *product) console(id int) []string {
	p.Helper()
	var lines []string
	p.eventually(fmt.Sprintf("vm %d prints", id), func() error {
		tunnel, err := p.client.Tunnel(p.Context(), id, client.TunnelConsoleLog, 0)
		if err != nil {
			return err
		}
		defer tunnel.Close()
		text, err := io.ReadAll(tunnel)
		if err != nil {
			return err
		}
		said, done := strings.CutSuffix(strings.ReplaceAll(string(text), "\r", ""), "\n.\n")
		if !done {
			return fmt.Errorf("%q", text)
		}
		_, printed, _ := strings.Cut(said, "Booting from Hard Disk...\n")
		lines = strings.Split(printed, "\n")
		return nil
	})
	return lines
}

func (p *product) expect(what string, got, want any) {
	p.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		p.Errorf("%s: %q, want %q", what, got, want)
	}
}
