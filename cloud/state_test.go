package cloud

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud/fault"
)

func TestNumbersAndNames(t *testing.T) {
	for _, c := range []struct {
		number int
		name   string
		want   interface{ String() string }
	}{
		{1, "PENDING", StatePending}, {3, "ACTIVE", StateActive}, {6, "DONE", StateDone},
		{8, "POWEROFF", StatePoweroff}, {11, "CLONING_FAILURE", StateCloningFailure},
		{1, "PROLOG", LCMProlog}, {3, "RUNNING", LCMRunning}, {12, "SHUTDOWN", LCMShutdown},
		{16, "UNKNOWN", LCMUnknown}, {23, "CLEANUP_DELETE", LCMCleanupDelete}, {36, "BOOT_FAILURE", LCMBootFailure},
		{39, "PROLOG_FAILURE", LCMPrologFailure}, {40, "EPILOG_FAILURE", LCMEpilogFailure},
		{50, "PROLOG_UNDEPLOY_FAILURE", LCMPrologUndeployFailure}, {57, "DISK_SNAPSHOT", LCMDiskSnapshot},
		{66, "HOTPLUG_RESIZE", LCMHotplugResize}, {71, "RESTORE", LCMRestore},
		{8, "USED_PERS", ImageStateUsedPers}, {2, "DATABLOCK", ImageTypeDatablock}, {2, "MONITORED", HostStateMonitored},
		{1, "SYSTEM_DS", DatastoreTypeSystem}, {4, "RBD_CDROM", DiskTypeRBDCDROM}, {6, "UPDATE_FAILURE", NetworkStateUpdateFailure},
	} {
		if c.want.String() != c.name {
			t.Errorf("String() = %s, want %s", c.want, c.name)
		}
		if out, err := json.Marshal(c.want); err != nil || string(out) != strconv.Itoa(c.number) {
			t.Errorf("%s as JSON = %s, %v; want %d", c.name, out, err, c.number)
		}
	}
	if s := State(7).String(); s != "7" {
		t.Errorf("retired state is called %q", s)
	}
	if s := LCMState(-1).String(); s != "-1" {
		t.Errorf("LCM state -1 is called %q", s)
	}
}

func TestEveryLCMStateBetween0And71(t *testing.T) {
	retired := map[int]bool{13: true, 14: true, 55: true, 58: true}
	for n := range 72 {
		l := LCMState(n)
		if named := l.String() != strconv.Itoa(n); named == retired[n] {
			t.Errorf("LCM state %d is called %q", n, l)
		}
		if back, err := ParseLCMState(l.String()); !retired[n] && (err != nil || back != l) {
			t.Errorf("ParseLCMState(%s) = %v, %v", l, back, err)
		}
		if short := Short(StateActive, l); !retired[n] && (len(short) != 4 || strings.ToLower(short) != short) {
			t.Errorf("short form of %v is %q", l, short)
		}
	}
}

func TestShort(t *testing.T) {
	for want, p := range map[string]Phase{
		"pend": At(StatePending), "hold": At(StateHold), "runn": Active(LCMRunning), "prol": Active(LCMProlog),
		"boot": Active(LCMBootPoweroff), "fail": Active(LCMBootFailure), "poff": At(StatePoweroff),
		"susp": At(StateSuspended), "stop": At(StateStopped), "unkn": Active(LCMUnknown), "done": At(StateDone),
		"unde": At(StateUndeployed), "epil": Active(LCMEpilog), "clea": Active(LCMCleanupDelete), "save": Active(LCMSaveStop),
	} {
		if p.Short() != want {
			t.Errorf("%v is short %q, want %q", p, p.Short(), want)
		}
	}
}

func TestParseNames(t *testing.T) {
	if v, err := ParseImageType("OS"); err != nil || v != ImageTypeOS {
		t.Errorf("OS: %v, %v", v, err)
	}
	if v, err := ParseImageType("cdrom"); err != nil || v != ImageTypeCDROM {
		t.Errorf("cdrom: %v, %v", v, err)
	}
	for _, name := range []string{"SYSTEM_DS", "system"} {
		if v, err := ParseDatastoreType(name); err != nil || v != DatastoreTypeSystem {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if v, err := ParseDiskType(""); err != nil || v != DiskTypeNone {
		t.Errorf("empty disk type: %v, %v", v, err)
	}
	if v, err := ParseState("poweroff"); err != nil || v != StatePoweroff {
		t.Errorf("poweroff: %v, %v", v, err)
	}
	for _, name := range []string{"", "FLOPPY", "7"} {
		_, err := ParseImageType(name)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), strconv.Quote(name)) || !strings.Contains(err.Error(), "DATABLOCK") {
			t.Errorf("ParseImageType(%q): error %v", name, err)
		}
	}
}
