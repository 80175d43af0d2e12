package cloud

// HostState is a host's STATE; 1, 5, 6 and 7 are retired.
type HostState int

// The states of a host.
const (
	HostStateInit      HostState = 0
	HostStateMonitored HostState = 2 // shown as "on"
	HostStateError     HostState = 3
	HostStateDisabled  HostState = 4 // no new machines
	HostStateOffline   HostState = 8
)

var hostStateLabels = [...]label{
	HostStateInit:      {"INIT", "init"},
	HostStateMonitored: {"MONITORED", "on"},
	HostStateError:     {"ERROR", "err"},
	HostStateDisabled:  {"DISABLED", "dsbl"},
	HostStateOffline:   {"OFFLINE", "off"},
}

func (s HostState) String() string { return fullName(hostStateLabels[:], int(s)) }

// Short is the state in a table's column, such as on.
func (s HostState) Short() string { return shortName(hostStateLabels[:], int(s)) }

// ParseHostState is the inverse of String, in any case.
func ParseHostState(name string) (HostState, error) {
	n, err := parseName(hostStateLabels[:], "host state", name)
	return HostState(n), err
}
