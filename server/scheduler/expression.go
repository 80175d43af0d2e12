package scheduler

import (
	"strconv"
	"strings"

	"hayloft/cloud/expression"
)

// Evaluate decides SCHED_REQUIREMENTS for a host; why says which part refuses it.
func Evaluate(text string, h *Host) (ok bool, why string, err error) {
	e, err := expression.ParseBool(text)
	if err != nil {
		return false, "", err
	}
	if e.Eval(h.values) {
		return true, "", nil
	}
	return false, e.Refusal(h.values), nil
}

// Value computes SCHED_RANK for a host.
func Value(text string, h *Host) (float64, error) {
	e, err := expression.ParseRank(text)
	if err != nil {
		return 0, err
	}
	return e.Eval(func(name string) (float64, bool) {
		for _, v := range h.values(name) {
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				return f, true
			}
		}
		return 0, false
	}), nil
}

// values looks a name up as OpenNebula does: the host's attributes, its capacity (CPU in hundredths of a
// core, memory in KB, disk in MB), and the host itself.
func (h *Host) values(name string) []string {
	if v, ok := h.Attributes[strings.ToUpper(name)]; ok {
		return []string{v}
	}
	for _, hv := range h.Hypervisor {
		if v, ok := hv.Attributes[name]; ok {
			return []string{v}
		}
	}
	most := Capacity(&h.Host)
	hundredths := func(cores float64) []string { return []string{strconv.Itoa(int(cores * 100))} }
	kilobytes := func(mb int) []string { return []string{strconv.Itoa(mb * 1024)} }
	switch strings.ToUpper(name) {
	case "ID":
		return []string{strconv.Itoa(h.ID)}
	case "NAME", "HOSTNAME":
		return []string{h.Name}
	case "CLUSTER_ID":
		return []string{strconv.Itoa(h.ClusterID)}
	case "HYPERVISOR":
		var names []string
		for _, hv := range h.Hypervisor {
			if hv.Error == "" {
				names = append(names, hv.Name)
			}
		}
		return names
	case "FREE_CPU":
		return hundredths(most.CPU - h.Used.CPU)
	case "CPU_USAGE", "USED_CPU":
		return hundredths(h.Used.CPU)
	case "MAX_CPU":
		return hundredths(most.CPU)
	case "TOTAL_CPU":
		return hundredths(h.CPU)
	case "FREE_MEMORY":
		return kilobytes(most.MemoryMB - h.Used.MemoryMB)
	case "MEM_USAGE", "USED_MEMORY":
		return kilobytes(h.Used.MemoryMB)
	case "MAX_MEM":
		return kilobytes(most.MemoryMB)
	case "TOTAL_MEM":
		return kilobytes(h.MemoryMB)
	case "FREE_DISK":
		return []string{strconv.Itoa(most.DiskMB - h.Used.DiskMB)}
	case "MAX_DISK":
		return []string{strconv.Itoa(most.DiskMB)}
	case "RUNNING_VMS":
		return []string{strconv.Itoa(h.VMs)}
	case "CURRENT_VMS":
		var ids []string
		for _, id := range h.ids {
			ids = append(ids, strconv.Itoa(id))
		}
		return ids
	}
	return nil
}
