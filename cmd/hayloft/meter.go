package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// stage is one bar: how much of a total has come that far.
type stage struct {
	name        string
	done, total int64
}

// meter shows how far something is, on standard error: bars that move on a terminal, else a line every few
// seconds. What takes less than a moment shows nothing. Safe for concurrent use.
type meter struct {
	out    io.Writer
	quiet  bool
	now    func() time.Time
	begun  time.Time
	ticker *time.Ticker
	stop   chan struct{}
	ended  sync.WaitGroup

	mu     sync.Mutex // of what is shown; bars take it while they draw, so nothing is asked of them under it
	text   string
	said   string
	stages []stage

	bars   *mpb.Progress // nil: lines
	barsMu sync.Mutex
	closed bool
	line   *mpb.Bar
	byName map[string]*mpb.Bar
}

const (
	// firstLine is how long something takes before it is worth a line.
	firstLine = time.Second
	// lineEvery is for output that is no terminal.
	lineEvery = 3 * time.Second
)

func (a *app) newMeter() *meter {
	m := &meter{out: a.stderr, quiet: a.quiet, now: a.now, begun: a.now(), byName: map[string]*mpb.Bar{}, stop: make(chan struct{})}
	if m.quiet {
		return m
	}
	if s := a.screen(a.stderr); s.terminal() {
		m.bars = mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(min(s.width, 100)), mpb.WithAutoRefresh())
		return m
	}
	m.ticker = time.NewTicker(firstLine)
	m.ended.Go(m.tick)
	return m
}

// update says how things are now. Bars keep their order of first appearance.
func (m *meter) update(text string, stages ...stage) {
	m.mu.Lock()
	m.text, m.stages = text, stages
	m.mu.Unlock()
	m.barsMu.Lock()
	defer m.barsMu.Unlock()
	if m.bars == nil || m.closed {
		return
	}
	for _, s := range stages {
		bar := m.byName[s.name]
		if bar == nil {
			bar = m.bars.AddBar(0, mpb.BarPriority(len(m.byName)),
				mpb.PrependDecorators(decor.Name(s.name, decor.WC{W: 10, C: decor.DindentRight})),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return m.share(s.name) })))
			m.byName[s.name] = bar
		}
		bar.SetTotal(max(s.total, s.done, 1), false)
		bar.SetCurrent(s.done)
	}
	if m.line == nil {
		m.line = m.bars.New(0, mpb.NopStyle(), mpb.BarPriority(1000), mpb.BarFillerTrim(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return m.current() })))
		m.line.SetTotal(1, false)
	}
}

func (m *meter) current() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprintf("%s  %s", printable(m.text), m.now().Sub(m.begun).Round(time.Second))
}

// share is the text at the end of a bar.
func (m *meter) share(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.stages {
		switch {
		case s.name != name:
		case s.total >= mebi:
			return fmt.Sprintf(" %d%%", 100*s.done/s.total)
		default:
			return fmt.Sprintf(" %d/%d", s.done, s.total)
		}
	}
	return ""
}

// tick writes lines while the meter runs.
func (m *meter) tick() {
	for {
		select {
		case <-m.stop:
			return
		case <-m.ticker.C:
			m.ticker.Reset(lineEvery)
			m.say()
		}
	}
}

// say writes the line if it differs from the last one.
func (m *meter) say() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.text != "" && m.text != m.said {
		m.said = m.text
		fmt.Fprintf(m.out, "%4s  %s\n", m.now().Sub(m.begun).Round(time.Second), printable(m.text))
	}
}

// end closes the meter with a last line, if it has shown anything.
func (m *meter) end(text string) {
	m.close()
	if (m.said != "" || m.line != nil) && text != "" {
		fmt.Fprintf(m.out, "%s (%s)\n", printable(strings.TrimSpace(text)), lapseText(m.now().Sub(m.begun)))
	}
}

// close leaves the bars as they are and ends what the meter runs. It can be called again.
func (m *meter) close() {
	m.barsMu.Lock()
	defer m.barsMu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	close(m.stop)
	if m.ticker != nil {
		m.ticker.Stop()
	}
	m.ended.Wait()
	if m.bars == nil {
		return
	}
	if m.line != nil {
		m.line.Abort(true)
	}
	for _, bar := range m.byName {
		bar.Abort(false)
	}
	m.bars.Wait()
}

// rate measures bytes a second over the last moments.
type rate struct {
	now    func() time.Time
	last   time.Time
	done   int64
	perSec float64
}

// text is "120M of 400M, 85M/s".
func (r *rate) text(done, total int64) string {
	now := r.now()
	if lapse := now.Sub(r.last); r.last.IsZero() || done < r.done {
		r.last, r.done = now, done
	} else if lapse >= time.Second/2 {
		r.perSec = float64(done-r.done) / lapse.Seconds()
		r.last, r.done = now, done
	}
	text := bytesText(done)
	if total > 0 {
		text += " of " + bytesText(total)
	}
	if r.perSec > 0 {
		text += ", " + bytesText(int64(r.perSec)) + "/s"
	}
	return text
}
