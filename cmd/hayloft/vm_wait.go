package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

func newVMWaitCommand(a *app) *cobra.Command {
	word, timeout := "running", time.Duration(0)
	cmd := one("wait VM...", "Wait until machines are in a state, or answer SSH",
		"hayloft vm wait web-1 web-2 --for ssh --timeout 2m\n  hayloft vm wait 3..40 --for done",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			g, err := goalOf(word)
			if err != nil {
				return err
			}
			ids, err := machines(ctx, c, args)
			if err != nil {
				return err
			}
			return a.await(ctx, c, ids, g, timeout)
		}))
	cmd.Flags().StringVar(&word, "for", word, strings.Join(goalNames(), ", "))
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this, such as 90s (0: never)")
	completeWords(cmd, "for", goalNames()...)
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, true)
	return cmd
}

// await waits for machines to reach a goal and shows how far they are. timeout 0: as long as it takes.
func (a *app) await(ctx context.Context, c *client.Client, ids []int, g goal, timeout time.Duration) error {
	limited := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = a.within(ctx, timeout)
		defer cancel()
	}
	w := &waiting{goal: g, meter: a.newMeter(), rate: rate{now: a.now}, probe: newProbe(c)}
	defer w.meter.close()
	want := g.reached
	if g.ssh {
		want = func(vm api.VM) (bool, error) {
			done, err := g.reached(vm)
			if done {
				w.probe.begin(limited, vm.ID, w.answered)
			}
			return done, err
		}
	}
	last, err := c.WaitVMs(limited, ids, want, w.show)
	err = errors.Join(err, w.probe.wait())
	if err == nil {
		w.meter.end(plural(len(ids), "machine") + " " + g.text())
		return nil
	}
	w.meter.close()
	if ctx.Err() != nil || limited.Err() == nil {
		return flat(err)
	}
	return a.timedOut(ctx, c, last, w, timeout)
}

// flat keeps the class of the first of joined errors.
func flat(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		return fault.As(fault.ClassOf(joined.Unwrap()[0]), err)
	}
	return err
}

func (g goal) text() string {
	switch {
	case g.ssh:
		return "answering SSH"
	case g.rest:
		return "at rest"
	}
	return g.name
}

// waiting is one wait as it is shown.
type waiting struct {
	goal  goal
	meter *meter
	probe *probe

	mu       sync.Mutex
	machines []api.VM
	rate     rate
}

func (w *waiting) show(machines []api.VM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines = machines
	w.draw()
}

func (w *waiting) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.draw()
}

// draw is called with mu held.
func (w *waiting) draw() {
	total, reached := int64(len(w.machines)), int64(0)
	var steps [stepRunning + 1]int64
	var done, bytes int64
	doing := "preparing"
	for i := range w.machines {
		vm := &w.machines[i]
		if ok, err := w.goal.reached(*vm); ok && err == nil {
			reached++
		}
		for step := range stepOf(vm) + 1 {
			steps[step]++
		}
		done, bytes = done+vm.Done, bytes+vm.Total
		if drains(vm) {
			doing = "draining"
		}
	}
	text := countsText(w.machines)
	if w.goal.ssh {
		text += fmt.Sprintf(", %d answering SSH", w.probe.count())
	}
	if bytes > 0 {
		text += "; " + doing + " " + w.rate.text(done, bytes)
	}
	if at := slices.IndexFunc(w.machines, func(vm api.VM) bool {
		return vm.State == cloud.StatePending && vm.SchedMessage != ""
	}); at >= 0 {
		text += fmt.Sprintf("; vm %d waits: %s", w.machines[at].ID, w.machines[at].SchedMessage)
	}
	if w.goal.phase != cloud.Active(cloud.LCMRunning) || w.goal.rest {
		w.meter.update(text, stage{w.goal.text(), reached, total})
		return
	}
	stages := []stage{{"placed", steps[stepPlaced], total}, {"prepared", steps[stepPrepared], total}, {"running", steps[stepRunning], total}}
	if w.goal.ssh {
		stages = append(stages, stage{"ssh", int64(w.probe.count()), total})
	}
	w.meter.update(text, stages...)
}

// mostTold bounds how many machines a time-out names.
const mostTold = 10

// timedOut says which machines are not there yet, what they are doing, and the last line on their consoles.
func (a *app) timedOut(ctx context.Context, c *client.Client, last []api.VM, w *waiting, timeout time.Duration) error {
	var lines []error
	late := 0
	for i := range last {
		vm := &last[i]
		reached, err := w.goal.reached(*vm)
		if err != nil {
			lines = append(lines, err)
			continue
		}
		if reached && (!w.goal.ssh || w.probe.has(vm.ID)) {
			continue
		}
		if late++; late > mostTold {
			continue
		}
		state := vm.StateName
		if state == "" {
			state = "not known yet"
		}
		text := fmt.Sprintf("vm %d (%s) is %s after %s%s", vm.ID, vm.Name, state, timeout, because(vm))
		if reached {
			text += ", and does not answer SSH"
			if why := w.probe.why(vm.ID); why != nil {
				text += ": " + why.Error()
			}
		}
		if vm.State == cloud.StateActive {
			if line := a.lastConsoleLine(ctx, c, vm.ID); line != "" {
				text += fmt.Sprintf("; last line on its console: %q", line)
			}
		}
		lines = append(lines, fault.Errorf(fault.Unavailable, "%s", text))
	}
	if late > mostTold {
		lines = append(lines, fault.Errorf(fault.Unavailable, "and %s more", plural(late-mostTold, "machine")))
	}
	if len(lines) == 0 { // they made it at the last moment
		return nil
	}
	return together(lines)
}
