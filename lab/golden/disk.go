package golden

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hayloft/internal/command"
)

// Layout of tiny.img in bytes: MBR, a FAT partition with the boot loader, an ext4 partition called "tiny".
const (
	sector    = 512
	mebibyte  = 1 << 20
	fatStart  = 1 * mebibyte
	fatSize   = 31 * mebibyte
	rootStart = fatStart + fatSize
	rootSize  = 64 * mebibyte
)

const (
	typeFAT16LBA = 0x0e
	typeLinux    = 0x83
	diskID       = 0x796e6974 // "tiny"
	rootUUID     = "74696e79-0000-4000-8000-000000000001"
	bootCode     = 440 // bytes of an MBR that belong to the boot loader
)

// mbrFile is the boot code of the syslinux package: it starts the active partition.
const mbrFile = "/usr/lib/SYSLINUX/mbr.bin"

// Not in the PATH of everybody.
const (
	mke2fs  = "/sbin/mke2fs"
	debugfs = "/sbin/debugfs"
)

// layout is where the two partitions of an image are, in bytes.
type layout struct {
	id                                     uint32
	fatStart, fatSize, rootStart, rootSize int64
}

var tinyLayout = layout{diskID, fatStart, fatSize, rootStart, rootSize}

// makeMBR is the first sector: boot code and two partitions, the first of them active.
func makeMBR(code []byte, l layout) ([]byte, error) {
	if len(code) > bootCode {
		return nil, fmt.Errorf("boot code has %d bytes, at most %d fit", len(code), bootCode)
	}
	mbr := make([]byte, sector)
	copy(mbr, code)
	binary.LittleEndian.PutUint32(mbr[440:], l.id)
	partition := func(slot int, status, kind byte, start, size int64) {
		p := mbr[446+16*slot:]
		p[0], p[4] = status, kind
		copy(p[1:4], []byte{0xfe, 0xff, 0xff}) // beyond what cylinders can say: use the sector numbers
		copy(p[5:8], []byte{0xfe, 0xff, 0xff})
		binary.LittleEndian.PutUint32(p[8:], uint32(start/sector))
		binary.LittleEndian.PutUint32(p[12:], uint32(size/sector))
	}
	partition(0, 0x80, typeFAT16LBA, l.fatStart, l.fatSize)
	partition(1, 0, typeLinux, l.rootStart, l.rootSize)
	mbr[510], mbr[511] = 0x55, 0xaa
	return mbr, nil
}

// makeDisk writes the whole-disk image of tiny.
func makeDisk(ctx context.Context, run command.Runner, scratch, image, kernel, initrd string, root *tree) error {
	err := makeBoot(ctx, run, scratch, image, bootPartition{layout: tinyLayout, kernel: kernel, initrd: initrd, cmdline: CmdlinePC, cluster: 16})
	if err != nil {
		return err
	}
	return makeRoot(ctx, run, scratch, image, root)
}

// bootPartition is what a boot loader loads.
type bootPartition struct {
	layout
	kernel, initrd, cmdline string
	cluster                 int // sectors
}

// makeBoot writes an image with its first partition; the second is empty. Programs work at offsets inside the
// file: no loop device, no root.
func makeBoot(ctx context.Context, run command.Runner, scratch, image string, b bootPartition) error {
	code, err := os.ReadFile(mbrFile)
	if err != nil {
		return fmt.Errorf("boot code: %w", err)
	}
	mbr, err := makeMBR(code, b.layout)
	if err != nil {
		return err
	}
	if err := os.WriteFile(image, mbr, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(image, b.rootStart+b.rootSize); err != nil {
		return err
	}
	config := filepath.Join(scratch, "syslinux.cfg")
	text := "DEFAULT linux\nPROMPT 0\nLABEL linux\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND " + b.cmdline + "\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	fat := fmt.Sprintf("%s@@%d", image, b.fatStart)
	steps := []command.Cmd{
		{Name: "mformat", Args: []string{"-i", fat, "-T", strconv.FormatInt(b.fatSize/sector, 10), "-h", "64", "-s", "32",
			"-H", strconv.FormatInt(b.fatStart/sector, 10), "-c", strconv.Itoa(b.cluster), "-N", "74696e79", "-v", "BOOT", "::"}},
		{Name: "mcopy", Args: []string{"-i", fat, b.kernel, "::vmlinuz"}},
		{Name: "mcopy", Args: []string{"-i", fat, b.initrd, "::initrd"}},
		{Name: "mcopy", Args: []string{"-i", fat, config, "::syslinux.cfg"}},
		{Name: "syslinux", Args: []string{"--offset", strconv.FormatInt(b.fatStart, 10), "--install", image}},
	}
	for _, step := range steps {
		step.Env = []string{"MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH=" + strconv.FormatInt(epoch.Unix(), 10)}
		if _, err := run.Run(ctx, step); err != nil {
			return fmt.Errorf("boot partition: %w", err)
		}
	}
	return nil
}

// makeRoot puts the ext4 file system with the tree's files into the image.
func makeRoot(ctx context.Context, run command.Runner, scratch, image string, root *tree) error {
	dir := filepath.Join(scratch, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := root.stage(dir); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	options := fmt.Sprintf("offset=%d,root_owner=0:0,hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0", rootStart, rootUUID)
	_, err := run.Run(ctx, command.Cmd{Name: mke2fs,
		Args: []string{"-q", "-F", "-t", "ext4", "-L", "tiny", "-U", rootUUID, "-m", "0", "-b", "4096", "-N", "8192",
			"-J", "size=4", "-O", "^metadata_csum,^64bit,^resize_inode,^orphan_file", "-E", options, "-d", dir, image,
			strconv.Itoa(rootSize / 4096)},
		Env: []string{"E2FSPROGS_FAKE_TIME=" + strconv.FormatInt(epoch.Unix(), 10)}})
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	if os.Geteuid() == 0 {
		return nil
	}
	return giveToRoot(ctx, run, scratch, image, root)
}

// giveToRoot changes the owner inside the image: staged files belong to whoever builds.
func giveToRoot(ctx context.Context, run command.Runner, scratch, image string, root *tree) error {
	var commands strings.Builder
	for _, n := range root.sorted() {
		fmt.Fprintf(&commands, "set_inode_field \"/%s\" uid 0\nset_inode_field \"/%s\" gid 0\n", n.Path, n.Path)
	}
	file := filepath.Join(scratch, "owners")
	if err := os.WriteFile(file, []byte(commands.String()), 0o644); err != nil {
		return err
	}
	_, err := run.Run(ctx, command.Cmd{Name: debugfs, Args: []string{"-w", "-f", file, fmt.Sprintf("%s?offset=%d", image, rootStart)}})
	return errors.Join(err, os.RemoveAll(file))
}
