package cloud

// NetworkState is a virtual network's STATE.
type NetworkState int

// The states of a virtual network.
const (
	NetworkStateInit          NetworkState = 0
	NetworkStateReady         NetworkState = 1
	NetworkStateLockCreate    NetworkState = 2
	NetworkStateLockDelete    NetworkState = 3
	NetworkStateDone          NetworkState = 4
	NetworkStateError         NetworkState = 5
	NetworkStateUpdateFailure NetworkState = 6
)

var networkStateLabels = [...]label{
	NetworkStateInit:          {"INIT", "init"},
	NetworkStateReady:         {"READY", "rdy"},
	NetworkStateLockCreate:    {"LOCK_CREATE", "lock"},
	NetworkStateLockDelete:    {"LOCK_DELETE", "lock"},
	NetworkStateDone:          {"DONE", "done"},
	NetworkStateError:         {"ERROR", "err"},
	NetworkStateUpdateFailure: {"UPDATE_FAILURE", "fail"},
}

func (s NetworkState) String() string { return fullName(networkStateLabels[:], int(s)) }

// Short is the state in a table's column, such as rdy.
func (s NetworkState) Short() string { return shortName(networkStateLabels[:], int(s)) }
