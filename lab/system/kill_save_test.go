package system

import (
	"fmt"
	"strconv"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// TestKillAnythingDuringSaves kills server, agent, `hayloft up` and QEMU while machines are suspended, stopped,
// resumed and saved as images.
func TestKillAnythingDuringSaves(t *testing.T) {
	p := begin(t, nil)
	s := newStorm(p)
	p.network()
	p.sectorImage()
	ids := p.create(api.CreateVMs{Text: p.sectorText(), Name: "vm-%i", Count: 2})
	p.reach(ids, "RUNNING")
	for _, id := range ids {
		p.prints(id, "up\n")
	}
	for i, victim := range []string{theAgent, theServer, theUp, aQEMU} {
		id, bystander := ids[i%2], ids[(i+1)%2]
		before := s.everyProcess()[bystander]
		s.away(id, "suspend", "SUSPENDED", victim)
		s.away(id, "stop", "STOPPED", victim)
		s.saveAs(id, victim)
		if now := s.everyProcess()[bystander]; len(now) != 1 || now[0] != before[0] {
			t.Errorf("the machine beside it was process %v, and is %v", before, now)
		}
		if t.Failed() {
			return
		}
	}
	s.terminate(ids, theAgent)
}

// strike kills the victim a little later; QEMU means that of the machine.
func (s *storm) strike(victim string, id int) {
	s.Helper()
	s.pause(150 * time.Millisecond)
	if victim != aQEMU {
		s.kill(victim)
		return
	}
	for _, pid := range s.qemus()[id] {
		s.killed[id] = true
		_ = syscall.Kill(pid, syscall.SIGKILL)
		s.progress("killed the QEMU of vm %d", id)
	}
}

// ask asks for an action when there is a server to ask.
func (s *storm) ask(id int, action string) {
	s.Helper()
	s.eventually(action, func() error {
		err := s.client.Act(s.ctx, id, action)
		if err != nil && !fault.Is(err, fault.Unavailable) {
			s.Fatal(err)
		}
		return err
	})
}

// away puts a machine away while something is killed, and brings it back while it is killed again. Unless its
// own QEMU was the victim, it must get there and go on from where it was.
func (s *storm) away(id int, action, state, victim string) {
	s.Helper()
	booted := !s.killed[id] || s.boots(id, false) > 0 // else it may be at it still, and is put away like that
	delete(s.killed, id)
	s.progress("vm %d: %s", id, action)
	s.ask(id, action)
	s.strike(victim, id)
	s.rests(id, state)
	if victim != aQEMU {
		s.ask(id, "resume")
		s.strike(victim, id)
	}
	s.comesBack(id)
	s.eventually("one process", func() error {
		if pids := s.qemus()[id]; len(pids) != 1 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
	if n := s.boots(id, false); n != 0 && booted && !s.killed[id] { // the console log is of this stay
		s.Errorf("vm %d has booted %d times after it was away: its memory was lost", id, n)
	}
}

// rests waits until a machine has come to rest: in the state, or with its QEMU killed in any.
func (s *storm) rests(id int, state string) {
	s.Helper()
	s.eventually(state, func() error {
		vm, err := s.client.VM(s.ctx, id)
		if err != nil {
			return err
		}
		// A save that failed puts it back to RUNNING, with the reason, and it is booted.
		resting := vm.State != cloud.StateActive || vm.LCM == cloud.LCMUnknown || vm.LCM.Failure() || vm.LCM == cloud.LCMRunning && vm.Error != ""
		if s.killed[id] && resting {
			s.progress("vm %d, whose QEMU was killed, is %s: %s", id, vm.StateName, vm.Error)
			return nil
		}
		if vm.StateName != state {
			return fmt.Errorf("vm %d is %s: %s", id, vm.StateName, vm.Error)
		}
		return nil
	})
}

// comesBack brings a machine to RUNNING by what a user would ask.
func (s *storm) comesBack(id int) {
	s.Helper()
	s.eventually("vm "+strconv.Itoa(id)+" comes back", func() error {
		vm, err := s.client.VM(s.ctx, id)
		if err != nil {
			return err
		}
		switch {
		case vm.LCM == cloud.LCMRunning:
			return nil
		case vm.State != cloud.StateActive && vm.State != cloud.StatePending, vm.LCM == cloud.LCMUnknown:
			_ = s.client.Act(s.ctx, id, "resume") // refused when it has just moved on
		case vm.LCM.Failure() && s.killed[id]:
			_ = s.client.Recover(s.ctx, id, "retry")
		}
		return fmt.Errorf("vm %d is %s: %s %s", id, vm.StateName, vm.Error, vm.SchedMessage)
	})
}

// saveAs saves a machine's disk while something is killed. Unless that was its QEMU, an image comes of it.
func (s *storm) saveAs(id int, victim string) {
	s.Helper()
	delete(s.killed, id)
	name := "saved-" + victim
	image := 0
	s.eventually("save as "+name, func() error { // what answers may be about to end, and its answer may be lost
		if i, err := s.client.Image(s.ctx, name); err == nil {
			image = i.ID
			return nil
		}
		var err error
		if image, err = s.client.SaveAs(s.ctx, id, 0, name); err != nil && !fault.Is(err, fault.Unavailable) {
			s.Fatal(err)
		}
		return err
	})
	s.strike(victim, id)
	s.eventually("image "+name, func() error {
		i, err := s.client.Image(s.ctx, name)
		switch {
		case err != nil:
			return err
		case i.State == cloud.ImageStateReady:
			return nil
		case i.State == cloud.ImageStateError && s.killed[id] && i.Error != "":
			return nil
		}
		return fmt.Errorf("image %d is %s: %s", image, i.StateName, i.Error)
	})
	s.comesBack(id)
	s.eventually("image "+name+" goes", func() error {
		if err := s.client.Delete(s.ctx, cloud.KindImage, strconv.Itoa(image)); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	})
}
