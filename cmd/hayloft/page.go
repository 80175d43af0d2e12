package main

import (
	"fmt"
	"strings"

	"hayloft/cloud/template"
)

// page is the long form of one object, in sections as OpenNebula's commands have them.
type page struct {
	screen screen
	text   strings.Builder
}

// section begins a section.
func (p *page) section(title string) {
	if p.text.Len() > 0 {
		p.text.WriteByte('\n')
	}
	p.text.WriteString(p.screen.paint(bold, strings.ToUpper(title)) + "\n")
}

const nameWidth = 20

// field writes a named value; one without value is left out. Further lines of a value are indented.
func (p *page) field(name string, value any) {
	p.painted(name, value, plain)
}

func (p *page) painted(name string, value any, c color) {
	text := strings.TrimSpace(printable(fmt.Sprint(value)))
	if text == "" {
		return
	}
	for i, line := range strings.Split(text, "\n") {
		separator := ": "
		if i > 0 {
			name, separator = "", "  "
		}
		fmt.Fprintf(&p.text, "%-*s%s%s\n", nameWidth, name, separator, p.screen.paint(c, line))
	}
}

// lines writes lines as they are.
func (p *page) lines(lines ...string) {
	for _, line := range lines {
		p.text.WriteString(line + "\n")
	}
}

// template writes a section with a template, if there is something in it.
func (p *page) template(title string, t template.Template) {
	if len(t.Attributes) == 0 {
		return
	}
	p.section(title)
	p.text.WriteString(printable(t.String()))
}

// rows writes a table into a page.
func rows[T any](p *page, items []T, columns ...column[T]) {
	p.lines(newTable(p.screen, columns).lines(items)...)
}
