package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hayloft/lab/fleet"
)

// result is one deployment. Times are in seconds from submission, or from the beginning of the loop.
type result struct {
	FirstRunning float64   `json:"first_running"`
	LastRunning  float64   `json:"last_running"`
	FirstAnswer  float64   `json:"first_answer"`
	LastAnswer   float64   `json:"last_answer"`
	Answered     int       `json:"answered"`
	Failed       []string  `json:"failed,omitempty"`
	Stages       []stage   `json:"stages,omitempty"`
	CPU          cpu       `json:"cpu_seconds"`
	ReadBytes    int64     `json:"repository_bytes,omitempty"`
	GivenBytes   int64     `json:"given_bytes,omitempty"`
	MemoryIdle   []process `json:"memory_idle,omitempty"`
	MemoryFull   []process `json:"memory_with_all,omitempty"`
	TakeDown     float64   `json:"take_down"`
}

type stage struct {
	Name string  `json:"name"`
	P50  float64 `json:"p50_seconds"`
	P99  float64 `json:"p99_seconds"`
}

// cpu is CPU seconds of one deployment.
type cpu struct {
	Machines float64 `json:"machines"`          // by their control groups
	Hayloft  float64 `json:"hayloft,omitempty"` // server, agent, supervisor, and programs that they ran
	Host     float64 `json:"host"`              // everything on this computer (/proc/stat), this benchmark and its prober too
}

type process struct {
	Name string `json:"name"`
	RSS  int64  `json:"rss_bytes"`
	PSS  int64  `json:"pss_bytes"`
}

func memoryOf(u fleet.Usage) []process {
	var all []process
	for _, p := range u.Processes {
		all = append(all, process{p.Name, p.RSS, p.PSS})
	}
	return all
}

func stagesOf(machines []fleet.Machine) []stage {
	var all []stage
	for _, s := range fleet.Stages(machines) {
		all = append(all, stage{s.Name, s.P50.Seconds(), s.P99.Seconds()})
	}
	return all
}

// fill takes over when the machines ran, by the server's record, and when they answered.
func (r *result) fill(began time.Time, machines []fleet.Machine) {
	var running, answers []float64
	for _, m := range machines {
		if m.Timing.Running > 0 {
			running = append(running, float64(m.Timing.Running-began.UnixNano())/1e9)
		}
		if m.Err != nil {
			r.Failed = append(r.Failed, m.Err.Error())
		} else {
			answers = append(answers, m.Answered.Sub(began).Seconds())
		}
	}
	r.spans(running, answers)
}

func (r *result) spans(running, answers []float64) {
	r.Answered = len(answers)
	if len(running) > 0 {
		r.FirstRunning, r.LastRunning = slices.Min(running), slices.Max(running)
	}
	if len(answers) > 0 {
		r.FirstAnswer, r.LastAnswer = slices.Min(answers), slices.Max(answers)
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// ticker says now and then on stderr how far a deployment is.
type ticker struct {
	total int
	since time.Time
	next  time.Time
}

const sayEvery = 10 * time.Second

func newTicker(total int, since time.Time) *ticker {
	return &ticker{total: total, since: since, next: since.Add(sayEvery)}
}

func (t *ticker) update(machines []fleet.Machine) {
	if time.Now().Before(t.next) {
		return
	}
	running, answered, failed := 0, 0, 0
	for i := range machines {
		m := &machines[i]
		switch {
		case m.Err != nil:
			failed++
		case !m.Answered.IsZero():
			answered++
			fallthrough
		case !m.RunningSeen.IsZero():
			running++
		}
	}
	t.say(running, answered, failed)
}

func (t *ticker) say(running, answered, failed int) {
	t.next = time.Now().Add(sayEvery)
	say("%5.0f s: %d of %d run, %d answer, %d failed", time.Since(t.since).Seconds(), running, t.total, answered, failed)
}

func printTable(o outcome) {
	noun := map[string]string{"qemu": "virtual machines", "lxc": "containers"}[o.Kind]
	fmt.Printf("%d %s on %d cores, %d started at a time\n", o.Machines, noun, o.Cores, o.Concurrency)
	for n, m := range o.Runs {
		fmt.Printf("\nrun %d, %s first\n%-34s %12s %12s\n", n+1, m.First, "", "hayloft", "floor")
		floor := m.Floor
		row := func(name, format string, value func(*result) any) {
			right := "-"
			if floor != nil {
				right = fmt.Sprintf(format, value(floor))
			}
			fmt.Printf("%-34s %12s %12s\n", name, fmt.Sprintf(format, value(&m.Hayloft)), right)
		}
		row("first machine runs", "%.2f s", func(r *result) any { return r.FirstRunning })
		row("last machine runs", "%.2f s", func(r *result) any { return r.LastRunning })
		row("first machine answers SSH", "%.2f s", func(r *result) any { return r.FirstAnswer })
		row("last machine answers SSH", "%.2f s", func(r *result) any { return r.LastAnswer })
		row("machines that answered", "%d", func(r *result) any { return r.Answered })
		row("CPU of the machines", "%.1f s", func(r *result) any { return r.CPU.Machines })
		row("CPU of hayloft", "%.1f s", func(r *result) any { return r.CPU.Hayloft })
		row("CPU of others (prober, strangers)", "%.1f s", func(r *result) any { return r.CPU.Host - r.CPU.Machines - r.CPU.Hayloft })
		if m.Ratio > 0 {
			fmt.Printf("%-34s %12.3f\n", "wall time, hayloft / floor", m.Ratio)
		}
		printDetails(m.Hayloft)
	}
	if len(o.Runs) > 1 && o.MedianRatio > 0 {
		fmt.Printf("\nmedian of %d runs, hayloft / floor: %.3f\n", len(o.Runs), o.MedianRatio)
	}
}

func printDetails(r result) {
	fmt.Printf("\n    %-20s %10s %10s\n", "stage", "p50", "p99")
	for _, s := range r.Stages {
		fmt.Printf("    %-20s %8.3f s %8.3f s\n", s.Name, s.P50, s.P99)
	}
	fmt.Printf("    repository: %.1f MB read for %.1f MB given to machines\n", float64(r.ReadBytes)/1e6, float64(r.GivenBytes)/1e6)
	for _, m := range []struct {
		when string
		all  []process
	}{{"idle", r.MemoryIdle}, {"with all machines", r.MemoryFull}} {
		var parts []string
		var rss, pss int64
		for _, p := range m.all {
			parts = append(parts, fmt.Sprintf("%s %.1f/%.1f", p.Name, float64(p.RSS)/1e6, float64(p.PSS)/1e6))
			rss, pss = rss+p.RSS, pss+p.PSS
		}
		fmt.Printf("    memory %s (MB, RSS/PSS): %s, together %.1f/%.1f\n", m.when, strings.Join(parts, ", "), float64(rss)/1e6, float64(pss)/1e6)
	}
	fmt.Printf("    taken down in %.1f s\n", r.TakeDown)
}
