package main

import (
	"context"
	"fmt"
)

// memory is what many busy exports in one process take.
type memory struct {
	Device  string   `json:"device"`
	Exports int      `json:"exports"`
	Idle    int64    `json:"idle_rss_bytes"`
	Runs    []usage  `json:"runs"`
	Names   []string `json:"lines"`
}

// measureMemory keeps all exports busy at once, each with a job of fio of its own.
func measureMemory(ctx context.Context, o options, dir string) (memory, error) {
	m := memory{Device: o.device, Exports: o.exports}
	ours, err := startOurs(ctx, o, dir)
	if err != nil {
		return m, err
	}
	defer ours.stop()
	idle, err := ours.usage()
	if err != nil {
		return m, err
	}
	m.Idle = idle.RSS
	lines, err := o.wanted()
	if err != nil {
		return m, err
	}
	for _, l := range lines {
		if _, err := fio(ctx, l, o, nbdEngine(socketOf(dir, 0)), jobs(l, o, dir)...); err != nil {
			return m, fmt.Errorf("%s of %d exports: %w", l, o.exports, err)
		}
		u, err := ours.usage()
		if err != nil {
			return m, err
		}
		m.Runs, m.Names = append(m.Runs, u), append(m.Names, l.String())
	}
	return m, nil
}

// jobs adds one for each further export; they share a process, as fio's threads.
func jobs(l line, o options, dir string) (args []string) {
	args = []string{"--thread", "--group_reporting"}
	for i := 1; i < o.exports; i++ {
		args = append(args, fmt.Sprintf("--name=export-%d", i))
		args = append(append(args, lineArgs(l, o)...), nbdEngine(socketOf(dir, i))...)
	}
	return args
}

func (m memory) print() {
	fmt.Printf("device %q, %d exports in one process\n\n%-16s %10.1f MB RSS\n", m.Device, m.Exports, "idle", float64(m.Idle)/1e6)
	for i, u := range m.Runs {
		fmt.Printf("%-16s %10.1f MB RSS, peak so far %.1f MB\n", m.Names[i], float64(u.RSS)/1e6, float64(u.Peak)/1e6)
	}
}
