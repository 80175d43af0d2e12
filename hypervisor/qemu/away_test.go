package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hayloft/hypervisor"
	"hayloft/hypervisor/qemu/qmp"
)

func dialConsole(t testing.TB, m hypervisor.Machine) (net.Conn, error) {
	return qmp.DialSocket(t.Context(), filepath.Join(m.Dir, "qemu", consoleSocket))
}

// awaitGuestOff waits, without a driver, until QEMU says that the guest has powered off.
func awaitGuestOff(t testing.TB, m hypervisor.Machine) {
	t.Helper()
	client, err := qmp.Dial(t.Context(), filepath.Join(m.Dir, "qemu", qmpSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(longest)
	for time.Now().Before(deadline) {
		var state struct{ Status string }
		if err := client.Execute(t.Context(), "query-status", nil, &state); err != nil {
			t.Fatal(err)
		}
		if state.Status == "shutdown" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the guest does not power off")
}

func recordedPID(t testing.TB, stateDir string, m hypervisor.Machine) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(stateDir, fmt.Sprintf("qemu-%d.json", m.ID)))
	if err != nil {
		t.Fatal(err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.PID == 0 {
		t.Fatalf("record of domain %d: pid %d, %v", m.ID, r.PID, err)
	}
	return r.PID
}
