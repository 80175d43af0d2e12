package expression

import (
	"strings"
	"unicode"
)

// pattern is a shell pattern as fnmatch(3) reads it without flags, by characters: * ? [a-z] [!a-z]
// [[:digit:]] and \ before a character that means itself. A bracket that is never closed means
// itself. Matching takes time in proportion to pattern times text.
type pattern []element

// element matches one character, or any number of them when star.
type element struct {
	star    bool
	negated bool
	ranges  []span
	classes []string
}

type span struct{ low, high rune }

func (e element) matches(c rune) bool {
	for _, r := range e.ranges {
		if r.low <= c && c <= r.high {
			return !e.negated
		}
	}
	for _, name := range e.classes {
		if inClass(name, c) {
			return !e.negated
		}
	}
	return e.negated
}

func compile(text string) pattern {
	var compiled pattern
	for p := []rune(text); len(p) > 0; {
		e, width := element{}, 1
		switch {
		case p[0] == '*':
			e.star = true
		case p[0] == '?':
			e.negated = true // anything but nothing
		default:
			if p[0] == '[' {
				e, width = compileSet(p)
			}
			if p[0] != '[' || width == 0 {
				var r rune
				r, width = member(p)
				e = element{ranges: []span{{r, r}}}
			}
		}
		compiled = append(compiled, e)
		p = p[width:]
	}
	return compiled
}

// compileSet reads [...]; width 0 means that it is not closed.
func compileSet(p []rune) (e element, width int) {
	i := 1
	if i < len(p) && (p[i] == '!' || p[i] == '^') {
		e.negated = true
		i++
	}
	for first := true; i < len(p); first = false {
		if p[i] == ']' && !first {
			return e, i + 1
		}
		if name, n := className(p[i:]); n > 0 {
			e.classes = append(e.classes, name)
			i += n
			continue
		}
		low, n := member(p[i:])
		i += n
		high := low
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			high, n = member(p[i+1:])
			i += 1 + n
		}
		e.ranges = append(e.ranges, span{low, high})
	}
	return element{}, 0
}

// member reads one character, which \ may precede.
func member(p []rune) (r rune, width int) {
	if p[0] == '\\' && len(p) > 1 {
		return p[1], 2
	}
	return p[0], 1
}

// className reads [:name:].
func className(p []rune) (name string, width int) {
	if len(p) < 2 || p[0] != '[' || p[1] != ':' {
		return "", 0
	}
	i := 2
	for i < len(p) && p[i] >= 'a' && p[i] <= 'z' {
		i++
	}
	if i+1 < len(p) && p[i] == ':' && p[i+1] == ']' {
		return string(p[2:i]), i + 2
	}
	return "", 0
}

func inClass(name string, c rune) bool {
	switch name {
	case "alpha":
		return unicode.IsLetter(c)
	case "digit":
		return c >= '0' && c <= '9'
	case "alnum":
		return unicode.IsLetter(c) || unicode.IsDigit(c)
	case "upper":
		return unicode.IsUpper(c)
	case "lower":
		return unicode.IsLower(c)
	case "space":
		return unicode.IsSpace(c)
	case "punct":
		return unicode.IsPunct(c) || unicode.IsSymbol(c)
	case "xdigit":
		return strings.ContainsRune("0123456789abcdefABCDEF", c)
	}
	return false
}

func (p pattern) match(text string) bool {
	t := []rune(text)
	// On a mismatch the last star takes one character more; stars before it need not be tried again.
	star, retry := -1, 0
	for i, j := 0, 0; ; {
		switch {
		case i < len(p) && p[i].star:
			star, retry = i, j
			i++
		case i == len(p) && j == len(t):
			return true
		case i < len(p) && j < len(t) && p[i].matches(t[j]):
			i, j = i+1, j+1
		case star < 0 || retry >= len(t):
			return false
		default:
			retry++
			i, j = star+1, retry
		}
	}
}
