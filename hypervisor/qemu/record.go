package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"hayloft/hypervisor"
	"hayloft/internal/durable"
)

// phase is how far a domain is, as far as the disk knows.
type phase string

const (
	starting phase = "starting" // a process may be there, whose guest has not run
	running  phase = "running"
	ended    phase = "ended"
)

// outcome is how a domain ended, or will end.
type outcome struct {
	Status hypervisor.Status
	Reason string
}

// record is what must survive the driver about one domain. It is in StateDir/qemu-<id>.json.
type record struct {
	ID       int
	Name     string
	Dir      string // of the machine
	Nonce    string // in the process's environment: what tells our process from another with its pid
	PID      int    // 0 before it is known
	Started  time.Time
	Phase    phase
	Outcome  outcome // when Phase is ended
	Ending   outcome // decided, while the process still lives
	Saving   string  // file that a Save under way writes
	Reboot   bool    // when the guest goes off, it is started again
	Platform platform
}

// platform is what must be the same wherever the machine's saved memory is continued.
type platform struct {
	Machine     string // versioned machine type
	CPU         string
	Accelerator string
	VCPU        int
	MemoryMB    int
}

func (r record) runtimeDir() string { return filepath.Join(r.Dir, "qemu") }

func (r record) path(name string) string { return filepath.Join(r.runtimeDir(), name) }

func (d *Driver) recordPath(id int) string {
	return filepath.Join(d.config.StateDir, fmt.Sprintf("qemu-%d.json", id))
}

func (d *Driver) store(r record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(d.recordPath(r.ID), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("record of domain %d: %w", r.ID, err)
	}
	return nil
}

func (d *Driver) forget(id int) error {
	if err := durable.Remove(d.recordPath(id)); err != nil {
		return fmt.Errorf("record of domain %d: %w", id, err)
	}
	return nil
}
