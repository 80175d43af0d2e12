package cloud

import "strconv"

// State is a machine's STATE. Numbers are OpenNebula's; 7 (FAILED) is retired.
type State int

// The states of a machine.
const (
	StateInit           State = 0
	StatePending        State = 1
	StateHold           State = 2
	StateActive         State = 3 // on a host; LCMState says what it does there
	StateStopped        State = 4
	StateSuspended      State = 5
	StateDone           State = 6
	StatePoweroff       State = 8
	StateUndeployed     State = 9
	StateCloning        State = 10
	StateCloningFailure State = 11
)

// label is what a number is called in full, and in the four letters of a table's column.
type label struct{ name, short string }

var stateLabels = [...]label{
	StateInit:           {"INIT", "init"},
	StatePending:        {"PENDING", "pend"},
	StateHold:           {"HOLD", "hold"},
	StateActive:         {"ACTIVE", "actv"},
	StateStopped:        {"STOPPED", "stop"},
	StateSuspended:      {"SUSPENDED", "susp"},
	StateDone:           {"DONE", "done"},
	StatePoweroff:       {"POWEROFF", "poff"},
	StateUndeployed:     {"UNDEPLOYED", "unde"},
	StateCloning:        {"CLONING", "clon"},
	StateCloningFailure: {"CLONING_FAILURE", "fail"},
}

// String gives OpenNebula's name, such as POWEROFF; a number without a name is printed as itself.
func (s State) String() string { return fullName(stateLabels[:], int(s)) }

// ParseState is the inverse of String, in any case.
func ParseState(name string) (State, error) {
	n, err := parseName(stateLabels[:], "state", name)
	return State(n), err
}

// Short is the column STAT of `onevm list`: the state, or for a machine on a host what happens there.
func Short(s State, l LCMState) string {
	if s == StateActive {
		return shortName(lcmLabels[:], int(l))
	}
	return shortName(stateLabels[:], int(s))
}

// Phase is everything the life cycle knows about where a machine is. LCM is LCMInit unless State is
// StateActive.
type Phase struct {
	State State    `json:"state"`
	LCM   LCMState `json:"lcm_state"`
}

// Active is the phase of a machine on a host.
func Active(l LCMState) Phase { return Phase{StateActive, l} }

// At is the phase of a machine that is in no host's hands.
func At(s State) Phase { return Phase{State: s} }

// String names the phase as OpenNebula's messages do: the LCM state when ACTIVE, else the state.
func (p Phase) String() string {
	if p.State == StateActive {
		return p.LCM.String()
	}
	return p.State.String()
}

// Short is Short(p.State, p.LCM).
func (p Phase) Short() string { return Short(p.State, p.LCM) }

func fullName(labels []label, n int) string {
	if n < 0 || n >= len(labels) || labels[n].name == "" {
		return strconv.Itoa(n)
	}
	return labels[n].name
}

func shortName(labels []label, n int) string {
	if n < 0 || n >= len(labels) || labels[n].name == "" {
		return strconv.Itoa(n)
	}
	return labels[n].short
}
