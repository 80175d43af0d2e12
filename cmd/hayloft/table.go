package main

import (
	"strings"

	"github.com/mattn/go-runewidth"
)

// column is one column of a table of objects.
type column[T any] struct {
	title string
	right bool
	least int // cells that it may be cut down to on a narrow terminal; 0: never cut
	cell  func(*T) string
	paint func(*T) color
}

// table lays objects out in columns. Its columns only ever become wider, so that rows that come later
// stay in line where they can.
type table[T any] struct {
	screen  screen
	columns []column[T]
	widths  []int
}

func newTable[T any](s screen, columns []column[T]) *table[T] {
	t := &table[T]{screen: s, columns: columns, widths: make([]int, len(columns))}
	for i, c := range columns {
		t.widths[i] = runewidth.StringWidth(c.title)
	}
	return t
}

// reserve gives the columns that vary most some room, for rows that come later.
func (t *table[T]) reserve() {
	for i, c := range t.columns {
		t.widths[i] = max(t.widths[i], c.least)
	}
}

// text is a cell's text on one line.
func (c column[T]) text(item *T) string {
	return strings.ReplaceAll(strings.TrimSpace(printable(c.cell(item))), "\n", " ")
}

// fit widens the columns for the items, then cuts the widest of those that may be cut, until a line fits
// the terminal.
func (t *table[T]) fit(items []T) {
	for n := range items {
		for i, c := range t.columns {
			t.widths[i] = max(t.widths[i], runewidth.StringWidth(c.text(&items[n])))
		}
	}
	for t.screen.terminal() && t.width() > t.screen.width {
		widest := -1
		for i, c := range t.columns {
			if c.least > 0 && t.widths[i] > c.least && (widest < 0 || t.widths[i] > t.widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		t.widths[widest]--
	}
}

func (t *table[T]) width() int {
	sum := len(t.widths) - 1
	for _, w := range t.widths {
		sum += w
	}
	return sum
}

func (t *table[T]) header() string {
	return t.line(func(i int) (string, color) { return t.columns[i].title, bold })
}

func (t *table[T]) row(item *T) string {
	return t.line(func(i int) (string, color) {
		c := t.columns[i]
		if c.paint == nil {
			return c.text(item), plain
		}
		return c.text(item), c.paint(item)
	})
}

func (t *table[T]) line(cell func(int) (string, color)) string {
	var b strings.Builder
	room := t.screen.width
	for i, c := range t.columns {
		text, paint := cell(i)
		width := t.widths[i]
		if t.screen.terminal() {
			if width = min(width, room); width <= 0 {
				break
			}
			text = cut(text, width)
			room -= width + 1
		}
		pad := strings.Repeat(" ", max(0, width-runewidth.StringWidth(text)))
		if i > 0 {
			b.WriteByte(' ')
		}
		text = t.screen.paint(paint, text)
		switch {
		case c.right:
			b.WriteString(pad + text)
		case i == len(t.columns)-1:
			b.WriteString(text)
		default:
			b.WriteString(text + pad)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// lines is a whole table.
func (t *table[T]) lines(items []T) []string {
	t.fit(items)
	lines := []string{t.header()}
	for n := range items {
		lines = append(lines, t.row(&items[n]))
	}
	return lines
}
