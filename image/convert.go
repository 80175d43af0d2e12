package image

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// convert turns a foreign disk format into sparse raw by qemu-img: in place where the object is a file of this host, else in
// a file that is copied then. What such a file can refer to besides itself would be read with the server's rights; so
// references are looked for before qemu-img opens it.
func convert(ctx context.Context, o ImportOptions, format Format, src *origin, w Writer) (*Index, Info, error) {
	if err := refuseReferences(format, src); err != nil {
		return nil, Info{}, err
	}
	size, err := inspect(ctx, o, format, src.path)
	if err != nil {
		return nil, Info{}, err
	}
	report := func(done int64) {
		if o.Report != nil {
			o.Report(min(done, 2*src.size), 2*src.size)
		}
	}
	second := func(done int64) { report(src.size + min(done, src.size)) }
	local, ok := w.(Local)
	if !ok {
		return convertAside(ctx, o, format, src, size, w, report, second)
	}
	if err := convertTo(ctx, o, format, src, local.LocalPath(), report); err != nil {
		return nil, Info{}, err
	}
	if err := w.SetSize(size); err != nil {
		return nil, Info{}, err
	}
	index, stored, err := Scan(ctx, nil, w, size, second)
	return index, Info{Format: Raw, Size: size, ObjectSize: size, StoredBytes: stored}, err
}

// convertTo has qemu-img write the raw image over a file that is there.
func convertTo(ctx context.Context, o ImportOptions, format Format, src *origin, path string, report func(int64)) error {
	stop := watchFile(ctx, path, func(done int64) { report(min(done, src.size)) })
	defer stop()
	_, err := o.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"convert", "-q", "-W", "-S", "64k",
		"-f", string(format), "-O", "raw", src.path, path}})
	if err != nil {
		return convertError(format, err)
	}
	return nil
}

// convertAside converts into a file of this host's, and copies that to an object elsewhere.
func convertAside(ctx context.Context, o ImportOptions, format Format, src *origin, size int64, w Writer, report, second func(int64)) (*Index, Info, error) {
	aside, err := os.CreateTemp(scratch(), "hayloft-convert-*")
	if err != nil {
		return nil, Info{}, err
	}
	defer aside.Close()
	defer os.Remove(aside.Name())
	if err := convertTo(ctx, o, format, src, aside.Name(), report); err != nil {
		return nil, Info{}, err
	}
	// qemu-img may have made the name another file's.
	raw, err := os.Open(aside.Name())
	if err != nil {
		return nil, Info{}, err
	}
	defer raw.Close()
	if err := w.SetSize(size); err != nil {
		return nil, Info{}, err
	}
	index, stored, err := Scan(ctx, w, &origin{File: raw, path: aside.Name(), size: size}, size, second)
	return index, Info{Format: Raw, Size: size, ObjectSize: size, StoredBytes: stored}, err
}

// convertError classifies what qemu-img says.
func convertError(format Format, err error) error {
	var e *command.Error
	switch {
	case !errors.As(err, &e):
		return err
	case strings.Contains(e.Stderr, "No space left"):
		return fault.As(fault.OutOfSpace, err)
	case strings.Contains(e.Stderr, "lock"):
		return fault.Errorf(fault.Busy, "%s is in use: %w", format, err)
	}
	return fault.Errorf(fault.Corrupt, "%s is damaged: %w", format, err)
}

// watchFile reports the bytes that a file written by another program has so far, until stop is called.
func watchFile(ctx context.Context, path string, report func(int64)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if fi, err := os.Stat(path); err == nil {
				report(fi.Sys().(*syscall.Stat_t).Blocks * 512)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// inspect has qemu-img check the file and returns the virtual size in bytes.
func inspect(ctx context.Context, o ImportOptions, format Format, path string) (int64, error) {
	out, err := o.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"info", "-f", string(format), "--output=json", path}})
	if err != nil {
		return 0, convertError(format, err)
	}
	var info struct {
		VirtualSize int64  `json:"virtual-size"`
		Backing     string `json:"backing-filename"`
		Encrypted   bool   `json:"encrypted"`
		Specific    struct {
			Data struct {
				DataFile string `json:"data-file"`
				Corrupt  bool   `json:"corrupt"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fault.Errorf(fault.Corrupt, "qemu-img info: %w", err)
	}
	switch {
	case info.Backing != "":
		return 0, refuseReference("backing file", info.Backing)
	case info.Specific.Data.DataFile != "":
		return 0, refuseReference("external data file", info.Specific.Data.DataFile)
	case info.Encrypted:
		return 0, fault.Errorf(fault.Unsupported, "%s is encrypted", format)
	case info.Specific.Data.Corrupt:
		return 0, fault.Errorf(fault.Corrupt, "%s is marked corrupt", format)
	case info.VirtualSize <= 0:
		return 0, fault.Errorf(fault.Corrupt, "%s has size %d", format, info.VirtualSize)
	case info.VirtualSize > o.Limits.Size:
		return 0, fault.Errorf(fault.Invalid, "%s claims %d bytes, more than the limit of %d", format, info.VirtualSize, o.Limits.Size)
	}
	_, err = o.Runner.Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"check", "-q", "-f", string(format), path}})
	var e *command.Error
	if errors.As(err, &e) && (e.Status == 3 || e.Status == 63) { // leaked clusters only; or no check for this format
		err = nil
	}
	if err != nil {
		return 0, convertError(format, err)
	}
	return info.VirtualSize, nil
}

func refuseReference(kind, name string) error {
	return fault.Errorf(fault.Invalid, "has the %s %q: an image must be whole in itself", kind, name)
}

// refuseReferences reads the headers that can point to other files.
func refuseReferences(format Format, src *origin) error {
	head := make([]byte, 512)
	if n, err := src.ReadAt(head, 0); err != nil && err != io.EOF {
		return err
	} else if n < len(head) && format != VMDK { // a descriptor alone may be shorter
		return fault.Errorf(fault.Corrupt, "truncated: ends at byte %d", n)
	}
	switch format {
	case QCOW2:
		return refuseQCOW2(head, src)
	case VMDK:
		return refuseVMDK(head, src)
	case VDI:
		return refuseShortVDI(head, src)
	}
	return nil // vhdx, vpc: QEMU does not open parents of these
}

func refuseQCOW2(head []byte, src *origin) error {
	be := binary.BigEndian
	version, backing, length := be.Uint32(head[4:]), int64(be.Uint64(head[8:])), be.Uint32(head[16:])
	if version < 2 || version > 3 {
		return fault.Errorf(fault.Unsupported, "qcow version %d", version)
	}
	if backing != 0 {
		name := make([]byte, min(length, 1023))
		if readFull(src, name, backing) != nil {
			name = nil
		}
		return refuseReference("backing file", string(name))
	}
	if be.Uint32(head[32:]) != 0 {
		return fault.Errorf(fault.Unsupported, "qcow2 is encrypted")
	}
	const externalData = 1 << 2
	if version == 3 && be.Uint64(head[72:])&externalData != 0 {
		return refuseReference("external data file", "")
	}
	return nil
}

// refuseVMDK takes only files that hold their own extent. QEMU follows the descriptor, embedded or alone, to
// whatever files it names.
func refuseVMDK(head []byte, src *origin) error {
	le := binary.LittleEndian
	switch string(head[:4]) {
	case "COWD":
		return nil
	case "KDMV":
	default:
		return refuseReference("extents that a vmdk descriptor names", "")
	}
	if le.Uint64(head[12:]) == 0 { // capacity: QEMU then takes the descriptor's extents
		return refuseReference("extents that a vmdk descriptor names", "")
	}
	offset, size := int64(le.Uint64(head[28:]))*512, int64(le.Uint64(head[36:]))*512
	if offset <= 0 || size <= 0 || size > 1<<20 {
		return fault.Errorf(fault.Corrupt, "vmdk has no descriptor")
	}
	text, err := io.ReadAll(io.NewSectionReader(src, offset, size))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n\x00"), "=")
		value = strings.Trim(value, `" `)
		switch {
		case !ok:
		case key == "createType" && value != "monolithicSparse" && value != "streamOptimized":
			return refuseReference("extents of a vmdk of type", value)
		case key == "parentFileNameHint", key == "parentCID" && !strings.EqualFold(value, "ffffffff"):
			return refuseReference("vmdk parent", value)
		}
	}
	return nil
}

// refuseShortVDI finds truncation, which QEMU reads as zeros.
func refuseShortVDI(head []byte, src *origin) error {
	le := binary.LittleEndian
	data, block, extra, allocated := int64(le.Uint32(head[0x158:])), int64(le.Uint32(head[0x178:])), int64(le.Uint32(head[0x17c:])), int64(le.Uint32(head[0x184:]))
	if want := data + (block+extra)*allocated; src.size < want {
		return fault.Errorf(fault.Corrupt, "vdi is truncated: %d bytes of %d", src.size, want)
	}
	return nil
}
