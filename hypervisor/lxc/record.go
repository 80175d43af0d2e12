package lxc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"hayloft/hypervisor"
)

// phase is how far a container is, as it was last written down.
type phase string

const (
	starting phase = "starting" // something of it may be there
	running  phase = "running"  // its monitor ran
	ended    phase = "ended"    // nothing of it runs
)

// record is what the driver remembers of one container, in a file of the state directory.
type record struct {
	Machine hypervisor.Machine
	Phase   phase
	Monitor process   // lxc's monitor, the parent of process 1
	Started time.Time // of the monitor
	Killed  bool      // Kill was asked for: the end is not a crash
	Status  hypervisor.Status
	Reason  string
}

func (r record) domain() hypervisor.Domain {
	d := hypervisor.Domain{ID: r.Machine.ID, Status: hypervisor.Running, PID: r.Monitor.PID, Started: r.Started}
	if r.Phase == ended {
		d = hypervisor.Domain{ID: r.Machine.ID, Status: r.Status, Reason: r.Reason}
	}
	return d
}

func recordPath(dir string, id int) string { return filepath.Join(dir, strconv.Itoa(id)+".json") }

// write replaces the file at once. It is not synced: a container does not outlive a crash of the host
// either, and after a crash of the process the renamed file is there.
func (r record) write(dir string) error {
	for i := range r.Machine.NICs {
		if r.Machine.NICs[i].Tap != nil {
			r.Machine.NICs = append([]hypervisor.NIC(nil), r.Machine.NICs...)
			r.Machine.NICs[i].Tap = nil
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temporary := filepath.Join(dir, "."+strconv.Itoa(r.Machine.ID)+".tmp")
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(temporary, recordPath(dir, r.Machine.ID)); err != nil {
		os.Remove(temporary)
		return err
	}
	return nil
}

// readRecords reads all containers of a state directory. A file that a crash of the host cut short
// becomes a crashed container without a directory.
func readRecords(dir string) (map[int]record, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	records := make(map[int]record)
	for _, e := range entries {
		id, err := strconv.Atoi(strings.TrimSuffix(e.Name(), ".json"))
		if err != nil || e.Name() != filepath.Base(recordPath(dir, id)) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(data, &r); err != nil {
			r = record{Phase: ended, Status: hypervisor.Crashed, Reason: "its record is damaged: " + err.Error()}
		}
		r.Machine.ID = id
		records[id] = r
	}
	return records, nil
}
