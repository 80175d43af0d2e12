package dummy

import (
	"fmt"
	"strings"
	"time"

	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/recordfile"
)

// record is a simulated machine as it is on disk. Its status is a function of the record and the
// clock, so a machine lives on, and ends when it should, while no driver is looking.
type record struct {
	ID        int
	MemoryMB  int
	VCPU      int
	Behaviour Behaviour
	HostBoot  string            // the host's boot id at Start: a restart of the host ends simulated machines too
	Status    hypervisor.Status // as of Started; Ends may have passed since
	Reason    string
	Started   time.Time
	Used      float64           // CPU seconds brought along by a restore
	Ends      time.Time         // when the machine will end by itself; zero: never
	EndStatus hypervisor.Status // what it will be then
	EndReason string
	Boots     int // boots so far, reboots included
}

// at brings the record to the state it has at now.
func (r record) at(now time.Time, hostBoot string) record {
	switch {
	case r.Status != hypervisor.Running:
	case !r.Ends.IsZero() && !now.Before(r.Ends):
		r = r.ended(r.EndStatus, r.EndReason)
	case r.HostBoot != hostBoot:
		r = r.ended(hypervisor.Crashed, "the host was restarted")
	}
	return r
}

func (r record) ended(status hypervisor.Status, reason string) record {
	r.Status, r.Reason = status, reason
	r.Started, r.Ends, r.EndStatus, r.EndReason, r.Used = time.Time{}, time.Time{}, "", "", 0
	return r
}

func (r record) booted(now time.Time, hostBoot string) record {
	r.Status, r.Reason, r.Started, r.HostBoot = hypervisor.Running, "", now, hostBoot
	r.Ends, r.Used = time.Time{}, 0
	r.Boots++
	r.endsIn(now, r.Behaviour.OffAfter, hypervisor.Off, "powered itself off after "+r.Behaviour.OffAfter.String())
	r.endsIn(now, r.Behaviour.CrashAfter, hypervisor.Crashed, "simulated crash after "+r.Behaviour.CrashAfter.String())
	return r
}

// endsIn plans an end unless an earlier one is planned; after 0 plans none.
func (r *record) endsIn(now time.Time, after time.Duration, status hypervisor.Status, reason string) {
	if after <= 0 || (!r.Ends.IsZero() && r.Ends.Before(now.Add(after))) {
		return
	}
	r.Ends, r.EndStatus, r.EndReason = now.Add(after), status, reason
}

func (r record) cpuSeconds(now time.Time) float64 {
	return r.Used + now.Sub(r.Started).Seconds()*r.Behaviour.CPULoad*float64(max(r.VCPU, 1))
}

func (r record) consoleText() string {
	var b strings.Builder
	for n := range r.Boots {
		fmt.Fprintf(&b, "simulated machine %d: boot %d\n", r.ID, n+1)
	}
	return b.String()
}

func (r record) write(dir string) error { return recordfile.Write(dir, r.ID, r) }

// readRecords reads all machines of a state directory. A file that a crash of the host cut short
// becomes a crashed machine.
func readRecords(dir string) (map[int]record, error) {
	records := make(map[int]record)
	err := recordfile.Each(dir, func(id int, r record, damaged error) {
		if damaged != nil {
			r = record{Status: hypervisor.Crashed, Reason: damaged.Error()}
		}
		r.ID = id
		records[id] = r
	})
	return records, err
}
