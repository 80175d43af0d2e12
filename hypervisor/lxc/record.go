package lxc

import (
	"time"

	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/recordfile"
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

func (r record) write(dir string) error {
	for i := range r.Machine.NICs {
		if r.Machine.NICs[i].Tap != nil {
			r.Machine.NICs = append([]hypervisor.NIC(nil), r.Machine.NICs...)
			r.Machine.NICs[i].Tap = nil
		}
	}
	return recordfile.Write(dir, r.Machine.ID, r)
}

// readRecords reads all containers of a state directory. A file that a crash of the host cut short
// becomes a crashed container without a directory.
func readRecords(dir string) (map[int]record, error) {
	records := make(map[int]record)
	err := recordfile.Each(dir, func(id int, r record, damaged error) {
		if damaged != nil {
			r = record{Phase: ended, Status: hypervisor.Crashed, Reason: damaged.Error()}
		}
		r.Machine.ID = id
		records[id] = r
	})
	return records, err
}
