package agent

import (
	"strings"
	"testing"

	"hayloft/wire"
)

func TestSaveDisks(t *testing.T) {
	saves := func(operations ...uint64) func(*wire.Assignment) {
		return func(a *wire.Assignment) {
			for _, operation := range operations {
				a.Saves = append(a.Saves, &wire.SaveDisk{Operation: operation, Disk: int32(operation - 1), Name: "copy"})
			}
		}
	}
	b := newBench(t)
	b.begin()
	b.order(assignment(1, 1, goalRunning, saves(1, 2)))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.idle()
	results := b.report(1).Saves
	if len(results) != 2 || results[0].Digest != "blake3:copy" || results[1].ErrorClass != "not-found" {
		t.Errorf("results %v", results)
	}
	b.stop()
	b.begin()
	b.order(assignment(1, 1, goalRunning, saves(1, 2)))
	b.idle()
	if got := b.w.happened(1); got != "prepare start saveas-copy" {
		t.Errorf("done: %s", got)
	}
	b.order(assignment(1, 1, goalRunning))
	b.idle()
	if results := b.report(1).Saves; len(results) != 0 {
		t.Errorf("results that nobody asks for any more: %v", results)
	}
	b.stop()

	b = newBench(t)
	b.plain = true
	b.begin()
	b.order(assignment(1, 1, goalRunning, saves(1)))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.idle()
	if results := b.report(1).Saves; len(results) != 1 || results[0].ErrorClass != "unsupported" {
		t.Errorf("results %v", results)
	}
}

func TestSaveBeforeGone(t *testing.T) {
	last := func(disk int32) func(*wire.Assignment) {
		return func(a *wire.Assignment) {
			a.Saves = []*wire.SaveDisk{{Operation: 7, Disk: disk, Name: "result", BeforeGone: true}}
		}
	}
	b := newBench(t)
	b.begin()
	b.order(assignment(1, 1, goalRunning, last(0)))
	b.until(1, 1, wire.Phase_PHASE_RUNNING)
	b.idle()
	if got := b.w.happened(1); got != "prepare start" || len(b.report(1).Saves) != 0 {
		t.Errorf("while it runs: %s, %v", got, b.report(1).Saves)
	}
	b.order(assignment(1, 2, goalGone, last(5))) // which it has not
	b.until(1, 2, wire.Phase_PHASE_FAILED)
	b.idle()
	if r := b.report(1); r.FailedStep != wire.Step_STEP_REMOVE || !strings.Contains(r.Error, "no disk 5") || len(r.Saves) != 0 {
		t.Errorf("a save that fails: %v", r)
	}
	if got := b.w.happened(1); strings.Contains(got, "remove") {
		t.Errorf("its disks went unsaved: %s", got)
	}
	b.order(assignment(1, 3, goalGone, last(0)))
	b.until(1, 3, wire.Phase_PHASE_GONE)
	b.idle()
	if got := b.w.happened(1); !strings.Contains(got, "saveas-result") || strings.Index(got, "saveas-result") > strings.Index(got, "remove") {
		t.Errorf("done: %s", got)
	}
	if results := b.report(1).Saves; len(results) != 1 || results[0].Digest != "blake3:result" {
		t.Errorf("results %v", results)
	}
}
