package dummy

import (
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

// Behaviour is how a simulated machine behaves. Keys are those of the template's DUMMY vector.
type Behaviour struct {
	BootDelay       time.Duration // BOOT_DELAY: Start takes this long
	ShutdownDelay   time.Duration // SHUTDOWN_DELAY: from being asked to being off
	SaveDelay       time.Duration // SAVE_DELAY: Save takes this long
	FailStart       string        // FAIL_START: every Start fails with this text
	FailProbability float64       // FAIL_PROBABILITY: share of Starts that fail, 0 to 1
	Seed            uint64        // SEED: which Starts fail; the same seed, machine and attempt always give the same answer
	CrashAfter      time.Duration // CRASH_AFTER: crashes this long after its start; 0 never
	OffAfter        time.Duration // OFF_AFTER: powers itself off this long after its start; 0 never
	RefuseShutdown  bool          // REFUSE_SHUTDOWN=YES: ignores being asked to power off
	CPULoad         float64       // CPU_LOAD: share of its VCPU that it uses, 0 to 1
}

// Parse reads the knobs of m.Simulated over the defaults in b. Durations are in Go's syntax ("1.5s") or
// a number of seconds. An unknown key or a bad value is fault.Invalid.
func (b Behaviour) Parse(knobs map[string]string) (Behaviour, error) {
	keys := make([]string, 0, len(knobs))
	for k := range knobs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if err := b.set(k, knobs[k]); err != nil {
			return Behaviour{}, err
		}
	}
	return b, nil
}

func (b *Behaviour) set(key, value string) (err error) {
	switch key {
	case "BOOT_DELAY":
		b.BootDelay, err = duration(value)
	case "SHUTDOWN_DELAY":
		b.ShutdownDelay, err = duration(value)
	case "SAVE_DELAY":
		b.SaveDelay, err = duration(value)
	case "CRASH_AFTER":
		b.CrashAfter, err = duration(value)
	case "OFF_AFTER":
		b.OffAfter, err = duration(value)
	case "FAIL_START":
		b.FailStart = value
	case "FAIL_PROBABILITY":
		b.FailProbability, err = share(value)
	case "CPU_LOAD":
		b.CPULoad, err = share(value)
	case "SEED":
		b.Seed, err = strconv.ParseUint(value, 10, 64)
	case "REFUSE_SHUTDOWN":
		b.RefuseShutdown, err = yes(value)
	default:
		return fault.Errorf(fault.Invalid, "DUMMY: unknown key %q", key)
	}
	if err != nil {
		return fault.Errorf(fault.Invalid, "DUMMY: %s = %q: %w", key, value, err)
	}
	return nil
}

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if seconds, numberErr := strconv.ParseFloat(s, 64); numberErr == nil && seconds >= 0 && seconds < 1e9 {
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err == nil && d < 0 {
		err = fault.Errorf(fault.Invalid, "is negative")
	}
	return d, err
}

func share(s string) (float64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err == nil && !(f >= 0 && f <= 1) {
		err = fault.Errorf(fault.Invalid, "is not between 0 and 1")
	}
	return f, err
}

func yes(s string) (bool, error) {
	switch strings.ToUpper(s) {
	case "YES":
		return true, nil
	case "NO":
		return false, nil
	}
	return false, fault.Errorf(fault.Invalid, "is neither YES nor NO")
}

// startFailure says why the attempt (counted from 1) to start machine id fails; "" when it does not.
func (b Behaviour) startFailure(id, attempt int) string {
	if b.FailStart != "" {
		return b.FailStart
	}
	if b.FailProbability <= 0 {
		return ""
	}
	h := fnv.New64a()
	h.Write([]byte(strconv.FormatUint(b.Seed, 10) + "/" + strconv.Itoa(id) + "/" + strconv.Itoa(attempt)))
	mixed := h.Sum64() * 0x9e3779b97f4a7c15 // spread FNV's weak high bits
	if float64(mixed>>11)/(1<<53) < b.FailProbability {
		return "simulated failure to start"
	}
	return ""
}
