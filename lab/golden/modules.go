package golden

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// module is one loadable kernel module.
type module struct {
	Name    string // with underscores
	Depends []string
	Data    []byte // without the signature: checking it costs CPU time at every boot
}

// bootModules are loaded at every boot, cdromModules only when no virtio disk holds a context.
var (
	bootModules  = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "isofs", "button", "evdev"}
	cdromModules = []string{"ata_piix", "virtio_scsi", "sr_mod", "sd_mod"}
)

// findModules reads the wanted modules and everything they depend on, dependencies first. Names that the
// kernel has built in are left out.
func findModules(root string, wanted []string) ([]module, error) {
	files, err := moduleFiles(root)
	if err != nil {
		return nil, err
	}
	builtin, err := builtinModules(root)
	if err != nil {
		return nil, err
	}
	var out []module
	state := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if state[name] || builtin[name] {
			return nil
		}
		state[name] = true
		file, ok := files[name]
		if !ok {
			return fmt.Errorf("kernel module %s: not in the kernel package", name)
		}
		m, err := readModule(name, file)
		if err != nil {
			return err
		}
		for _, dep := range m.Depends {
			if err := visit(dep); err != nil {
				return err
			}
		}
		out = append(out, m)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

func moduleFiles(root string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".ko") {
			files[moduleName(p)] = p
		}
		return err
	})
	return files, err
}

func builtinModules(root string) (map[string]bool, error) {
	text, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		names[moduleName(strings.TrimSpace(line))] = true
	}
	return names, nil
}

func readModule(name, file string) (module, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return module{}, err
	}
	m := module{Name: name, Data: stripSignature(data)}
	info, err := moduleInfo(m.Data)
	if err != nil {
		return module{}, fmt.Errorf("kernel module %s: %w", name, err)
	}
	for dep := range strings.SplitSeq(info["depends"], ",") {
		if dep != "" {
			m.Depends = append(m.Depends, strings.ReplaceAll(dep, "-", "_"))
		}
	}
	return m, nil
}

// moduleInfo reads the key=value strings of the .modinfo section.
func moduleInfo(data []byte) (map[string]string, error) {
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for pair := range bytes.SplitSeq(text, []byte{0}) {
		if key, value, ok := strings.Cut(string(pair), "="); ok {
			info[key] = value
		}
	}
	return info, nil
}

const (
	signatureMagic = "~Module signature appended~\n"
	signatureTail  = 12 // struct module_signature of the kernel, its last 4 bytes are the length, big endian
)

// stripSignature drops a signature appended to a module; anything else comes back as it is.
func stripSignature(data []byte) []byte {
	body, ok := bytes.CutSuffix(data, []byte(signatureMagic))
	if !ok || len(body) < signatureTail {
		return data
	}
	length := int64(binary.BigEndian.Uint32(body[len(body)-4:]))
	end := int64(len(body)) - signatureTail - length
	if end < 0 {
		return data
	}
	return body[:end]
}
