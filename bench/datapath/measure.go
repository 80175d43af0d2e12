package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"time"

	"hayloft/internal/command"
)

// line is one way of reading or writing.
type line struct {
	mode  string // of fio
	block string
	depth int
}

func (l line) String() string { return fmt.Sprintf("%s-%s-%d", l.mode, l.block, l.depth) }

// sample is one run of fio.
type sample struct {
	requests int64
	iops     float64
	bytes    float64 // a second
}

// lineArgs make a job of fio's do a line, for a while and over all of the file.
func lineArgs(l line, o options) []string {
	return []string{"--rw=" + l.mode, "--bs=" + l.block, fmt.Sprintf("--iodepth=%d", l.depth), fmt.Sprintf("--size=%dm", o.size), "--time_based",
		fmt.Sprintf("--runtime=%dms", o.time.Milliseconds()), "--randrepeat=0", "--norandommap", "--invalidate=0"}
}

// longestFio bounds the runs that are tried for one sample.
const longestFio = 4 * time.Minute

// fio runs one line on one subject. A run that was too short for a single request, on a machine with much else to do, is made
// again, longer.
func fio(ctx context.Context, l line, o options, engine []string, more ...string) (sample, error) {
	for {
		s, err := fioOnce(ctx, l, o, engine, more...)
		if err != nil || s.requests > 0 && s.iops > 0 {
			return s, err
		}
		if o.time *= 2; o.time > longestFio {
			return s, fmt.Errorf("fio did nothing")
		}
	}
}

func fioOnce(ctx context.Context, l line, o options, engine []string, more ...string) (sample, error) {
	args := append([]string{"--output-format=json", "--name=" + l.String()}, append(lineArgs(l, o), engine...)...)
	out, err := command.Exec{}.Run(ctx, command.Cmd{Name: "fio", Args: append(args, more...)})
	if err != nil {
		return sample{}, err
	}
	return parse(out)
}

// parse reads fio's JSON, which other lines may precede.
func parse(out []byte) (sample, error) {
	type direction struct {
		IOPS     float64 `json:"iops"`
		Bytes    float64 `json:"bw_bytes"`
		Requests int64   `json:"total_ios"`
	}
	var said struct {
		Jobs []struct {
			Read, Write direction
			Error       int
		}
	}
	begin := bytes.IndexByte(out, '{')
	if begin < 0 {
		return sample{}, fmt.Errorf("fio said no JSON: %s", out)
	}
	if err := json.Unmarshal(out[begin:], &said); err != nil {
		return sample{}, fmt.Errorf("fio: %w", err)
	}
	var s sample
	for _, j := range said.Jobs {
		if j.Error != 0 {
			return sample{}, fmt.Errorf("fio: error %d", j.Error)
		}
		s.requests += j.Read.Requests + j.Write.Requests
		s.iops += j.Read.IOPS + j.Write.IOPS
		s.bytes += j.Read.Bytes + j.Write.Bytes
	}
	if len(said.Jobs) == 0 {
		return sample{}, fmt.Errorf("fio did nothing")
	}
	return s, nil
}

// outcome is all that is measured, as -json prints it.
type outcome struct {
	Device  string  `json:"device"`
	Cores   int     `json:"cores"`
	SizeMiB int64   `json:"size_mib"`
	Rounds  int     `json:"rounds"`
	Seconds float64 `json:"seconds"` // of one run
	Lines   []row   `json:"lines"`
}

// row is one line with all subjects.
type row struct {
	Line       string   `json:"line"`
	Subjects   []figure `json:"subjects"`
	BestPeer   string   `json:"best_peer"`
	Ratio      float64  `json:"ratio"` // of the medians, hayloft / best peer
	PerRequest struct {
		Mallocs float64 `json:"mallocs"`
		Bytes   float64 `json:"bytes"`
	} `json:"per_request"` // allocated by Hayloft's server
}

// figure is one subject on one line.
type figure struct {
	Name   string    `json:"name"`
	IOPS   float64   `json:"iops"`             // median
	Bytes  float64   `json:"bytes_per_second"` // median
	Rounds []float64 `json:"iops_of_rounds"`
}

// measure goes through the lines; in each, rounds of all subjects in turn, each round beginning with another one.
func measure(ctx context.Context, o options, dir string) (outcome, error) {
	result := outcome{Device: o.device, Cores: runtime.NumCPU(), SizeMiB: o.size, Rounds: o.rounds, Seconds: o.time.Seconds()}
	lines, err := o.wanted()
	if err != nil {
		return result, err
	}
	all, err := subjects(ctx, o, dir)
	if err != nil {
		return result, err
	}
	defer stopAll(all)
	for _, l := range lines {
		r, err := measureLine(ctx, l, o, all)
		if err != nil {
			return result, err
		}
		result.Lines = append(result.Lines, r)
	}
	return result, nil
}

func measureLine(ctx context.Context, l line, o options, all []*subject) (row, error) {
	r := row{Line: l.String()}
	iops, rates := make([][]float64, len(all)), make([][]float64, len(all))
	var mallocs, allocated uint64
	var requests int64
	for round := range o.rounds {
		for i := range all {
			n := (i + round) % len(all)
			s := all[n]
			var before, after usage
			var err error
			if s.ask != nil {
				if before, err = s.usage(); err != nil {
					return r, err
				}
			}
			got, err := fio(ctx, l, o, s.fio)
			if err != nil {
				return r, fmt.Errorf("%s of %s: %w", l, s.name, err)
			}
			if s.ask != nil {
				if after, err = s.usage(); err != nil {
					return r, err
				}
				mallocs += after.Mallocs - before.Mallocs
				allocated += after.Bytes - before.Bytes
				requests += got.requests
			}
			iops[n], rates[n] = append(iops[n], got.iops), append(rates[n], got.bytes)
		}
		say("%s: round %d of %d", l, round+1, o.rounds)
	}
	r.PerRequest.Mallocs, r.PerRequest.Bytes = float64(mallocs)/float64(requests), float64(allocated)/float64(requests)
	for n, s := range all {
		r.Subjects = append(r.Subjects, figure{s.name, median(iops[n]), median(rates[n]), iops[n]})
	}
	r.compare()
	return r, nil
}

// compare finds the better peer: what exports the file by NBD as we do.
func (r *row) compare() {
	var best float64
	for _, f := range r.Subjects[1:] {
		if (f.Name == "nbdkit" || f.Name == "qemu-nbd") && f.IOPS > best {
			r.BestPeer, best = f.Name, f.IOPS
		}
	}
	if best > 0 {
		r.Ratio = r.Subjects[0].IOPS / best
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

func (o outcome) print() {
	fmt.Printf("device %q, file of %d MiB in the page cache, %d cores, medians of %d rounds of %v\n\n%-16s", o.Device, o.SizeMiB, o.Cores, o.Rounds,
		time.Duration(o.Seconds*float64(time.Second)), "")
	if len(o.Lines) == 0 {
		return
	}
	for _, f := range o.Lines[0].Subjects {
		fmt.Printf(" %15s", f.Name)
	}
	fmt.Printf(" %10s %22s\n", "ratio", "allocated a request")
	for _, r := range o.Lines {
		fmt.Printf("%-16s", r.Line)
		for _, f := range r.Subjects {
			fmt.Printf(" %15s", f)
		}
		fmt.Printf(" %10.2f %10.4f / %6.2f B\n", r.Ratio, r.PerRequest.Mallocs, r.PerRequest.Bytes)
	}
	fmt.Println("\nratio: hayloft to the better of nbdkit and qemu-nbd")
}

func (f figure) String() string {
	if f.Bytes/f.IOPS > 64<<10 {
		return fmt.Sprintf("%.0f MB/s", f.Bytes/1e6)
	}
	return fmt.Sprintf("%.1fk IOPS", f.IOPS/1e3)
}
