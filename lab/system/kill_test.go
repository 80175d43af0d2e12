package system

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/internal/children"
	"hayloft/server/api"
)

// Fleet of a round: mostly machines of a boot sector, some containers.
const (
	virtual    = 30
	containers = 10
	rounds     = 3
)

// storm is one product in which processes are killed at random moments.
type storm struct {
	*product
	random *rand.Rand
	killed map[int]bool // machines whose QEMU was killed in this round
	former []int        // processes that a `hayloft up` had when it was killed: they end, and answer until then
}

// newStorm seeds from HAYLOFT_SEED, to repeat a run, or from the clock.
func newStorm(p *product) *storm {
	seed, err := strconv.ParseUint(os.Getenv("HAYLOFT_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	p.Logf("HAYLOFT_SEED=%d repeats the choices of this run", seed)
	return &storm{product: p, random: rand.New(rand.NewPCG(seed, 0)), killed: map[int]bool{}}
}

func (s *storm) progress(format string, args ...any) {
	fmt.Printf("    %s %s: %s\n", time.Now().Format("15:04:05"), s.Name(), fmt.Sprintf(format, args...))
}

// victims of a kill.
const (
	theServer = "server"
	theAgent  = "agent"
	aQEMU     = "qemu"
	theUp     = "up"
)

// kill ends a victim with SIGKILL. A process that is just being started again counts as killed.
func (s *storm) kill(victim string) {
	s.Helper()
	switch victim {
	case theServer, theAgent:
		if pid := s.child(victim); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	case theUp:
		s.former = append(s.former, children.Of(s.up.Process.Pid)...)
		_ = syscall.Kill(s.up.Process.Pid, syscall.SIGKILL)
		<-s.ended
		s.startUp()
	case aQEMU:
		all := s.qemus()
		var ids []int
		for id := range all {
			ids = append(ids, id)
		}
		if len(ids) == 0 {
			return
		}
		slices.Sort(ids)
		id := ids[s.random.IntN(len(ids))]
		s.killed[id] = true
		for _, pid := range all[id] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		victim = fmt.Sprintf("the QEMU of vm %d", id)
	}
	s.progress("killed %s", victim)
}

// settled waits until nothing that was killed is about to end, and what is in its place answers.
func (s *storm) settled() {
	s.Helper()
	s.eventually("former processes end", func() error {
		for _, pid := range s.former {
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(line, []byte(s.stateDir())) {
				return fmt.Errorf("process %d: %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
			}
		}
		return nil
	})
	s.former = nil
	s.answers()
}

// pause waits for a random part of most.
func (s *storm) pause(most time.Duration) { time.Sleep(time.Duration(s.random.Int64N(int64(most)))) }

// await waits until some machines are in a stage. All of them may be beyond it already: then the kill comes
// later than meant, which is a moment as good as another.
func (s *storm) await(ids []int, stage string, count int) {
	s.Helper()
	order := []string{"PENDING", "PROLOG", "BOOT", "RUNNING"}
	s.eventually("stage "+stage, func() error {
		vms, err := s.client.VMs(s.ctx, false)
		if err != nil {
			return err
		}
		there := 0
		for _, vm := range vms {
			if slices.Contains(ids, vm.ID) && slices.Index(order, vm.StateName) >= slices.Index(order, stage) {
				there++
			}
		}
		if there < count {
			return fmt.Errorf("%d machines of %d", there, count)
		}
		return nil
	})
}

// pids are the processes of all machines that are RUNNING, by id: those must stay what they are.
func (s *storm) pids() map[int]int {
	s.Helper()
	running := map[int]bool{}
	vms, err := s.client.VMs(s.ctx, false)
	if err != nil {
		return nil // the server has just been killed
	}
	for _, vm := range vms {
		running[vm.ID] = vm.LCM == cloud.LCMRunning
	}
	pids := map[int]int{}
	for id, all := range s.everyProcess() {
		if running[id] && len(all) == 1 {
			pids[id] = all[0]
		}
	}
	return pids
}

// everyProcess are the processes of all machines, QEMU's or a container's monitor.
func (s *storm) everyProcess() map[int][]int {
	all := s.qemus()
	for id, pids := range s.monitors() {
		all[id] = append(all[id], pids...)
	}
	return all
}

// converge brings every machine to RUNNING: by itself, or with the user's help where QEMU was killed.
func (s *storm) converge(ids []int) []api.VM {
	s.Helper()
	helped := map[int]int{}
	var vms []api.VM
	s.eventually("all machines run", func() error {
		vms = nil
		counts := map[string]int{}
		all, err := s.client.VMs(s.ctx, false)
		if err != nil {
			return err
		}
		for _, vm := range all {
			if !slices.Contains(ids, vm.ID) {
				continue
			}
			vms = append(vms, vm)
			counts[vm.StateName]++
			if s.killed[vm.ID] {
				s.help(vm, helped)
			} else if vm.LCM.Failure() {
				s.Fatalf("vm %d, which nobody touched, is %s: %s", vm.ID, vm.StateName, vm.Error)
			}
		}
		if counts["RUNNING"] != len(ids) {
			return fmt.Errorf("machines by state: %v", counts)
		}
		return nil
	})
	return vms
}

// help does what a user does about a machine whose QEMU was killed.
func (s *storm) help(vm api.VM, helped map[int]int) {
	s.Helper()
	var err error
	switch vm.StateName {
	case "UNKNOWN":
		if vm.Error == "" {
			s.Errorf("vm %d is UNKNOWN without a message", vm.ID)
		}
		err = s.client.Act(s.ctx, vm.ID, "resume")
	case "BOOT_FAILURE", "PROLOG_FAILURE":
		if vm.Error == "" {
			s.Errorf("vm %d is %s without a message", vm.ID, vm.StateName)
		}
		err = s.client.Recover(s.ctx, vm.ID, "retry")
	default:
		return
	}
	if err == nil {
		s.progress("vm %d was %s (%s): started again", vm.ID, vm.StateName, vm.Error)
		helped[vm.ID]++
	}
}

// check looks at a fleet that has converged. before are processes that were there before kills.
func (s *storm) check(vms []api.VM, before map[int]int) {
	s.Helper()
	var all map[int][]int
	s.eventually("one process a machine", func() error {
		all = s.everyProcess()
		for _, vm := range vms {
			if len(all[vm.ID]) != 1 {
				return fmt.Errorf("vm %d has the processes %v", vm.ID, all[vm.ID])
			}
		}
		if len(all) != len(vms) {
			return fmt.Errorf("%d machines have processes, and there are %d", len(all), len(vms))
		}
		return nil
	})
	for id, pid := range before {
		if !s.killed[id] && all[id][0] != pid {
			s.Errorf("vm %d was process %d, and is %d: it was started again", id, pid, all[id][0])
		}
	}
	addresses := map[string]int{}
	for _, vm := range vms {
		if len(vm.History) != 1 {
			s.Errorf("vm %d has been on hosts %d times: %+v", vm.ID, len(vm.History), vm.History)
		}
		if other, taken := addresses[vm.NICs[0].IP]; taken {
			s.Errorf("vm %d has the address %s of vm %d", vm.ID, vm.NICs[0].IP, other)
		}
		addresses[vm.NICs[0].IP] = vm.ID
		if s.killed[vm.ID] {
			continue
		}
		s.eventually(fmt.Sprintf("vm %d comes up", vm.ID), func() error {
			if s.boots(vm.ID, vm.Hypervisor == "lxc") == 0 {
				return fmt.Errorf("console: %q", s.consoleLog(vm.ID))
			}
			return nil
		})
		if n := s.boots(vm.ID, vm.Hypervisor == "lxc"); n != 1 {
			s.Errorf("vm %d has booted %d times", vm.ID, n)
		}
	}
	if n := s.leases(); n != len(vms) {
		s.Errorf("%d machines have %d addresses", len(vms), n)
	}
}

// TestKillAnythingDuringADeployment kills server, agent, machines and `hayloft up` in every stage of
// deployments of 40 machines, and of taking them down.
func TestKillAnythingDuringADeployment(t *testing.T) {
	p := begin(t, nil)
	s := newStorm(p)
	p.network()
	p.sectorImage()
	p.containerImage()
	victims := []string{theServer, theAgent, aQEMU, theUp}
	stages := []struct {
		name string
		part int // of the machines must be there, in percent
	}{{"PENDING", 0}, {"PROLOG", 0}, {"BOOT", 10}, {"RUNNING", 10}, {"RUNNING", 50}}
	for round := range rounds {
		clear(s.killed)
		ids := p.create(api.CreateVMs{Text: p.sectorText(), Name: fmt.Sprintf("vm-%d-%%i", round), Count: virtual})
		ids = append(ids, p.create(api.CreateVMs{Text: p.containerText(), Name: fmt.Sprintf("ct-%d-%%i", round), Count: containers})...)
		s.random.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		before := map[int]int{}
		for i, stage := range stages {
			s.await(ids, stage.name, max(1, len(ids)*stage.part/100))
			s.pause(300 * time.Millisecond)
			s.progress("round %d, stage %s (%d%%)", round, stage.name, stage.part)
			for id, pid := range s.pids() {
				if _, known := before[id]; !known {
					before[id] = pid
				}
			}
			s.kill(victims[(i+round)%len(victims)])
		}
		vms := s.converge(ids)
		s.check(vms, before)
		s.progress("round %d: %d machines run", round, len(vms))
		s.terminate(ids, victims[round%len(victims)], victims[(round+1)%len(victims)])
		if t.Failed() {
			return
		}
	}
}

// terminate asks for the end of all machines and kills the victims while it happens.
func (s *storm) terminate(ids []int, victims ...string) {
	s.Helper()
	ask := func(id int) {
		s.eventually(fmt.Sprintf("terminate vm %d", id), func() error {
			err := s.client.Act(s.ctx, id, "terminate-hard")
			if err != nil && (strings.Contains(err.Error(), "EPILOG") || strings.Contains(err.Error(), "DONE")) {
				return nil // the request before, whose answer was lost, was heard
			}
			return err
		})
	}
	for i, id := range ids {
		ask(id)
		if len(victims) > 0 && i == len(ids)/2 {
			s.pause(100 * time.Millisecond)
			s.kill(victims[0])
		}
	}
	if len(victims) > 1 {
		s.pause(200 * time.Millisecond)
		s.kill(victims[1])
	}
	s.settled()
	s.reach(ids, "DONE")
	s.nothingOnHost()
	s.progress("%d machines are gone", len(ids))
}
