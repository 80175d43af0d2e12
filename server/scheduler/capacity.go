package scheduler

import (
	"math"
	"strconv"
	"strings"

	"hayloft/cloud"
)

// Capacity is what machines may take of a host: what it has, less RESERVED_CPU (hundredths of a core, or
// a percentage) and RESERVED_MEM (KB, or a percentage) of its attributes. A negative reservation, or a
// percentage above 0 with a minus, offers more than there is, as in OpenNebula.
func Capacity(h *cloud.Host) Demand {
	return Demand{
		CPU:      h.CPU - reserved(h.Attributes["RESERVED_CPU"], h.CPU, 100),
		MemoryMB: h.MemoryMB - int(math.Round(reserved(h.Attributes["RESERVED_MEM"], float64(h.MemoryMB), 1024))),
		DiskMB:   h.DiskMB,
	}
}

func reserved(text string, all, unit float64) float64 {
	text = strings.TrimSpace(text)
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil {
			return 0
		}
		return all * p / 100
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	return n / unit
}

// Counts reports whether a machine takes CPU and memory of its host: OpenNebula counts also those that
// are powered off or suspended, since they come back where they are.
func Counts(vm *cloud.VM) bool { return vm.HostID >= 0 }
