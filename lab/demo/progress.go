package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"hayloft/cloud"
	"hayloft/lab/fleet"
	"hayloft/lab/golden"
)

// live says whether somebody watches on a terminal that has room for the bars.
func live() bool {
	width, height, err := term.GetSize(int(os.Stdout.Fd()))
	return err == nil && width >= 80 && height >= 10 && os.Getenv("CI") == ""
}

// board is a group of bars. Its library draws a bar for the last time before it lets go of it; on a terminal
// without rows, made so small meanwhile, that never happens, and so the end is not waited for without limit.
type board struct {
	*mpb.Progress
	cancel context.CancelFunc
}

func newBoard() board {
	ctx, cancel := context.WithCancel(context.Background())
	return board{mpb.NewWithContext(ctx, mpb.WithWidth(48), mpb.WithOutput(os.Stdout), mpb.WithRefreshRate(120*time.Millisecond)), cancel}
}

// finish ends all bars, those that are not complete as they are.
func (b board) finish(bars ...*mpb.Bar) {
	for _, bar := range bars {
		if !bar.Completed() {
			bar.Abort(false)
		}
	}
	drawn := make(chan struct{})
	go func() { defer close(drawn); b.Wait() }()
	select {
	case <-drawn:
	case <-time.After(time.Second):
	}
	b.cancel()
}

// stages are what the bars count.
var stages = []struct {
	name    string
	reached func(*fleet.Machine) bool
}{
	{"scheduled", func(m *fleet.Machine) bool { return m.State != cloud.StatePending && m.StateName != "" }},
	{"PROLOG", func(m *fleet.Machine) bool { return m.LCM == cloud.LCMBoot || m.LCM == cloud.LCMRunning }},
	{"BOOT", func(m *fleet.Machine) bool { return m.LCM == cloud.LCMRunning }},
	{"answers SSH", func(m *fleet.Machine) bool { return !m.Answered.IsZero() }},
}

// progress shows a deployment: bars on a terminal, else a line every two seconds.
type progress struct {
	since time.Time
	total int
	bars  board
	each  []*mpb.Bar
	text  *mpb.Bar

	mu     sync.Mutex
	counts []int
	states string

	stop  chan struct{}
	group sync.WaitGroup
}

const lineEvery = 2 * time.Second

func newProgress(total int, since time.Time) *progress {
	p := &progress{since: since, total: total, counts: make([]int, len(stages)), stop: make(chan struct{})}
	if !live() {
		p.group.Go(p.lines)
		return p
	}
	p.bars = newBoard()
	for _, s := range stages {
		p.each = append(p.each, p.bars.AddBar(int64(total),
			mpb.PrependDecorators(decor.Name("    "+s.name, decor.WC{W: 17, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.CountersNoUnit("%3d of %d"))))
	}
	p.text = p.bars.New(0, mpb.NopStyle(), mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Sprintf("    %5.1f s  %s", time.Since(p.since).Seconds(), p.states)
	})))
	return p
}

// update is given to Follow.
func (p *progress) update(machines []fleet.Machine) {
	counts := make([]int, len(stages))
	states := map[string]int{}
	for i := range machines {
		m := &machines[i]
		for n, s := range stages {
			if s.reached(m) {
				counts[n]++
			}
		}
		name := m.StateName
		if m.Err != nil {
			name = "failed"
		}
		states[cmp.Or(name, "...")]++
	}
	var parts []string
	for name, n := range states {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(parts)
	p.mu.Lock()
	p.counts, p.states = counts, strings.Join(parts, "  ")
	p.mu.Unlock()
	for n, bar := range p.each {
		bar.SetCurrent(int64(counts[n]))
	}
}

func (p *progress) lines() {
	tick := time.NewTicker(lineEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.line()
		case <-p.stop:
			p.line()
			return
		}
	}
}

func (p *progress) line() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var parts []string
	for n, s := range stages {
		parts = append(parts, fmt.Sprintf("%s %d/%d", s.name, p.counts[n], p.total))
	}
	fmt.Printf("    %5.1f s  %s   %s\n", time.Since(p.since).Seconds(), strings.Join(parts, "  "), p.states)
}

func (p *progress) close() {
	close(p.stop)
	p.group.Wait()
	if p.text == nil {
		return
	}
	p.text.SetTotal(-1, true)
	p.bars.finish(p.each...)
}

// register registers the images with a bar each, or a line each.
func register(ctx context.Context, f *fleet.Fleet, set golden.Set) error {
	if !live() {
		return f.RegisterGolden(ctx, set, func(i fleet.Import) {
			if i.Ready {
				fmt.Printf("    %-12s %s\n", i.Image, megabytes(i.Total))
			}
		})
	}
	bars := newBoard()
	each := map[string]*mpb.Bar{}
	err := f.RegisterGolden(ctx, set, func(i fleet.Import) {
		bar := each[i.Image]
		if bar == nil {
			bar = bars.AddBar(0,
				mpb.PrependDecorators(decor.Name("    "+i.Image, decor.WC{W: 17, C: decor.DindentRight})),
				mpb.AppendDecorators(decor.CountersKibiByte("% .1f of % .1f"), decor.Name(" "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
			each[i.Image] = bar
		}
		if i.Total > 0 {
			bar.SetTotal(i.Total, false)
			bar.SetCurrent(i.Done)
		}
		if i.Ready {
			bar.SetTotal(-1, true)
		}
	})
	bars.finish(slices.Collect(maps.Values(each))...)
	return err
}
