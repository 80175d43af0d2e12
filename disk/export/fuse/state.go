package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"hayloft/cloud/fault"
	"hayloft/internal/lockfile"
)

// stateVersion changes with everything that two processes on one connection must agree on.
const stateVersion = 1

const opInit = 26 // FUSE_INIT

// state is what the next process needs to go on with the connection of this one. It is of use only as long as the
// kernel runs, so it is replaced at once but not synced.
type state struct {
	Version int              `json:"version"`
	Boot    string           `json:"boot"`
	Dir     string           `json:"dir"`
	Bound   bool             `json:"bound,omitempty"`
	Holder  holder           `json:"holder"`
	Init    []byte           `json:"init"` // the kernel's first message
	LastID  uint64           `json:"last_id"`
	Files   map[string]known `json:"files"`
}

// known is a file that the kernel may know.
type known struct {
	Node     uint64 `json:"node"`
	Size     int64  `json:"size"`
	ReadOnly bool   `json:"read_only,omitempty"`
	Modified int64  `json:"modified"`
	Backing  int32  `json:"backing,omitempty"`
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// readState gives nil when there is nothing that could be gone on with.
func readState(path, dir string) (*state, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s state
	if json.Unmarshal(b, &s) != nil || s.Boot != bootID() || s.Dir != dir {
		return nil, nil
	}
	return &s, nil
}

func (s *state) write(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// lockState makes this process the only one that serves what the state describes.
func lockState(path string) (*os.File, error) {
	file, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockfile.Take(context.Background(), file, 0); err != nil {
		file.Close()
		if fault.Is(err, fault.Busy) {
			return nil, fault.Errorf(fault.Busy, "is served by another process")
		}
		return nil, err
	}
	return file, nil
}

// initMessage is the kernel's first message, as go-fuse keeps it, header included.
func initMessage(in *gofuse.InitIn) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(in)), unsafe.Sizeof(*in)))
}

// isInit checks what initMessage gave to a process before this one.
func isInit(message []byte) bool {
	var in gofuse.InitIn
	if len(message) != int(unsafe.Sizeof(in)) {
		return false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&in)), len(message)), message)
	return in.Opcode == opInit && int(in.Length) == len(message) && in.Major == 7
}

// save writes the state when there is one to keep. A successor without it only lacks what changed since.
func (f *FileSystem) save() {
	if f.statePath == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	s := f.base
	s.LastID, s.Files = f.lastID, map[string]known{}
	for name, k := range f.earlier { // not added again so far
		s.Files[name] = k
	}
	for name, file := range f.files.Load().byName {
		s.Files[name] = file.known()
	}
	if err := s.write(f.statePath); err != nil {
		f.log.Error("fuse: state not written, a successor will not know all files", "dir", f.dir, "error", err)
	}
}

func (f *file) known() known {
	f.backingMu.Lock()
	defer f.backingMu.Unlock()
	return known{Node: f.node, Size: f.size, ReadOnly: f.readOnly, Modified: f.modified.Load(), Backing: f.backing}
}
