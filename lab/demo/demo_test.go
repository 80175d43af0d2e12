package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/lab/fleet"
)

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		930 * time.Microsecond: "930µs", 16 * time.Millisecond: "16 ms", 1500 * time.Millisecond: "1.5 s", 154 * time.Second: "2m34s",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestReportFailsWhenAMachineIsSilent(t *testing.T) {
	began := time.Unix(1000, 0)
	good := fleet.Machine{Answered: began.Add(time.Second)}
	good.Hypervisor = "qemu"
	good.Timing = cloud.Timing{BootEnd: 1}
	silent := fleet.Machine{Err: errors.New("tiny-ct-1: no answer")}
	silent.Hypervisor = "lxc"
	if err := report([]fleet.Machine{good}, began, fleet.Usage{}, fleet.Usage{}); err != nil {
		t.Error(err)
	}
	err := report([]fleet.Machine{good, silent}, began, fleet.Usage{}, fleet.Usage{})
	if err == nil || !strings.Contains(err.Error(), "1 of 2") || !strings.Contains(err.Error(), "tiny-ct-1: no answer") {
		t.Errorf("%v", err)
	}
}

func TestProofFailsWhenSomethingIsLeft(t *testing.T) {
	if err := proof([]fleet.Check{{What: "processes"}}); err != nil {
		t.Error(err)
	}
	err := proof([]fleet.Check{{What: "processes"}, {What: "mounts", Left: []string{"/tmp/x"}}})
	if err == nil || !strings.Contains(err.Error(), "mounts: /tmp/x") {
		t.Errorf("%v", err)
	}
}

func TestStagesInOrder(t *testing.T) {
	m := fleet.Machine{}
	reached := func() string {
		var all []string
		for _, s := range stages {
			if s.reached(&m) {
				all = append(all, s.name)
			}
		}
		return strings.Join(all, " ")
	}
	for _, tt := range []struct {
		state cloud.State
		lcm   cloud.LCMState
		want  string
	}{
		{cloud.StatePending, cloud.LCMInit, ""},
		{cloud.StateActive, cloud.LCMProlog, "scheduled"},
		{cloud.StateActive, cloud.LCMBoot, "scheduled PROLOG"},
		{cloud.StateActive, cloud.LCMRunning, "scheduled PROLOG BOOT"},
	} {
		m.State, m.LCM, m.StateName = tt.state, tt.lcm, "known"
		if got := reached(); got != tt.want {
			t.Errorf("%v %v: %q, want %q", tt.state, tt.lcm, got, tt.want)
		}
	}
}
