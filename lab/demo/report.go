package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hayloft/lab/fleet"
)

func step(what string) { fmt.Println("==>", what) }

// short is a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 100*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func megabytes(n int64) string {
	if n >= 10_000_000_000 {
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// report prints the table, and fails when a machine has not answered.
func report(machines []fleet.Machine, submitted time.Time, before, after fleet.Usage) error {
	kinds := []struct {
		name     string
		machines []fleet.Machine
	}{{"virtual machines", nil}, {"containers", nil}}
	var errs []error
	var read, given int64
	for _, m := range machines {
		k := &kinds[0]
		if m.Container() {
			k = &kinds[1]
		}
		k.machines = append(k.machines, m)
		read += m.Timing.ReadBytes
		given += m.Timing.GivenBytes
		if m.Err != nil {
			errs = append(errs, m.Err)
		}
	}
	for _, k := range kinds {
		if len(k.machines) > 0 {
			printStages(k.name, k.machines, submitted)
		}
	}
	fmt.Printf("\nrepository   %s read, for %s given to machines", megabytes(read), megabytes(given))
	if given > 0 {
		fmt.Printf(" (%.2f %%)", 100*float64(read)/float64(given))
	}
	fmt.Printf("\nwall         %s from submission to the last answer\n", short(last(machines).Sub(submitted)))
	fmt.Printf("CPU          %.1f s by everything on this computer (/proc/stat): %.1f s by the machines (their control groups),\n"+
		"             %.1f s by Hayloft (%s)\n", after.Host-before.Host, after.Machines-before.Machines,
		after.Hayloft()-before.Hayloft(), byProcess(before, after))
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d machines did not answer: %w", len(errs), len(machines), errors.Join(errs...))
	}
	return nil
}

func printStages(name string, machines []fleet.Machine, submitted time.Time) {
	answered := 0
	for _, m := range machines {
		if !m.Answered.IsZero() {
			answered++
		}
	}
	fmt.Printf("\n%d %s, %d answered over SSH%s, the last after %s\n", len(machines), name, answered,
		map[bool]string{true: " with their own addresses", false: " with their own host names"}[machines[0].Container()],
		short(last(machines).Sub(submitted)))
	fmt.Printf("    %-18s %10s %10s\n", "stage", "p50", "p99")
	for _, s := range fleet.Stages(machines) {
		fmt.Printf("    %-18s %10s %10s\n", s.Name, short(s.P50), short(s.P99))
	}
}

func last(machines []fleet.Machine) time.Time {
	return slices.MaxFunc(machines, func(a, b fleet.Machine) int { return a.Answered.Compare(b.Answered) }).Answered
}

func byProcess(before, after fleet.Usage) string {
	var parts []string
	for _, p := range after.Processes {
		used := p.CPUSeconds
		for _, b := range before.Processes {
			if b.PID == p.PID {
				used -= b.CPUSeconds
			}
		}
		parts = append(parts, fmt.Sprintf("%s %.1f s, %s resident", p.Name, used, megabytes(p.RSS)))
	}
	return strings.Join(parts, "; ")
}

// proof prints what was looked for, and fails when something was found.
func proof(checks []fleet.Check) error {
	if found := fleet.Found(checks); len(found) > 0 {
		return errors.New("left behind:\n    " + strings.Join(found, "\n    "))
	}
	var looked []string
	for _, c := range checks {
		looked = append(looked, c.What)
	}
	fmt.Println("    nothing is left; looked for " + strings.Join(looked, "; "))
	return nil
}

// howToLook prints what can be done with a demo that goes on.
func howToLook(f *fleet.Fleet, binary string) {
	if path, err := filepath.Abs(binary); err == nil {
		binary = path
	}
	sudo := ""
	if os.Getenv("SUDO_USER") != "" {
		sudo = "sudo -E "
	}
	fmt.Printf(`
It is left running. To look around:
    export HAYLOFT_ENDPOINT=%s
    %[3]s%[2]s vm list
    %[3]s%[2]s vm show 0
    %[3]s%[2]s vm ssh -i %[4]s 0
    %[3]s%[2]s vm console 0
    %[3]sip netns exec %[5]s ip address
To take it down:
    make demo-down
`, f.Endpoint(), binary, sudo, f.KeyFile(), f.Name)
}
