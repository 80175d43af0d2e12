package main

import (
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// screen is what is known about where output goes. The zero one is no terminal: lines are as long as they
// get, without colours.
type screen struct {
	width, height int
	color         bool
}

func (s screen) terminal() bool { return s.width > 0 }

func screenOf(w io.Writer) screen {
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return screen{}
	}
	width, height, err := term.GetSize(int(file.Fd()))
	if err != nil || width <= 0 {
		width, height = 80, 24
	}
	return screen{width, height, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// out is the screen of standard output with the flags applied.
func (a *app) out() screen {
	s := a.screen(a.stdout)
	s.color = s.color && !a.noColor
	return s
}

// color is a colour of a terminal, by its number in the SGR sequence.
type color int

const (
	plain  color = 0
	red    color = 31
	green  color = 32
	yellow color = 33
	bold   color = 1
)

func (s screen) paint(c color, text string) string {
	if !s.color || c == plain || strings.TrimSpace(text) == "" {
		return text
	}
	return "\x1b[" + []string{red: "31", green: "32", yellow: "33", bold: "1"}[c] + "m" + text + "\x1b[0m"
}

// printable takes control characters out of text from elsewhere, so that it cannot command the terminal.
// Line ends stay.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, text)
}

// cut shortens text to a width in cells.
func cut(text string, width int) string {
	if width <= 0 || runewidth.StringWidth(text) <= width {
		return text
	}
	return runewidth.Truncate(text, width, "…")
}
