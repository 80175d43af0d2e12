package expression

import (
	"strings"
	"unicode"
)

// match is fnmatch(3) without flags, by characters: * ? [a-z] [!a-z] [[:digit:]] and \ before a
// character that means itself. A bracket that is never closed means itself.
func match(pattern, text string) bool {
	p, t := []rune(pattern), []rune(text)
	// On a mismatch the last star takes one character more; stars before it need not be tried again.
	star, retry := -1, 0
	for i, j := 0, 0; ; {
		if i < len(p) && p[i] == '*' {
			star, retry = i, j
			i++
			continue
		}
		if i == len(p) && j == len(t) {
			return true
		}
		if i < len(p) && j < len(t) {
			if width, ok := matchOne(p[i:], t[j]); ok {
				i, j = i+width, j+1
				continue
			}
		}
		if star < 0 || retry >= len(t) {
			return false
		}
		retry++
		i, j = star+1, retry
	}
}

// matchOne matches one character and says how much of the pattern that took.
func matchOne(p []rune, c rune) (width int, ok bool) {
	switch {
	case p[0] == '?':
		return 1, true
	case p[0] == '\\' && len(p) > 1:
		return 2, p[1] == c
	case p[0] == '[':
		if width, ok := matchSet(p, c); width > 0 {
			return width, ok
		}
	}
	return 1, p[0] == c
}

// matchSet matches [...]; width 0 means that it is not closed.
func matchSet(p []rune, c rune) (width int, ok bool) {
	i := 1
	negated := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negated {
		i++
	}
	for first := true; i < len(p); first = false {
		if p[i] == ']' && !first {
			return i + 1, ok != negated
		}
		if name, n := className(p[i:]); n > 0 {
			ok = ok || inClass(name, c)
			i += n
			continue
		}
		low, n := setMember(p[i:])
		i += n
		high := low
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			high, n = setMember(p[i+1:])
			i += 1 + n
		}
		ok = ok || low <= c && c <= high
	}
	return 0, false
}

func setMember(p []rune) (r rune, width int) {
	if p[0] == '\\' && len(p) > 1 {
		return p[1], 2
	}
	return p[0], 1
}

// className reads [:name:].
func className(p []rune) (name string, width int) {
	if len(p) < 4 || p[0] != '[' || p[1] != ':' {
		return "", 0
	}
	for i := 2; i+1 < len(p) && p[i] >= 'a' && p[i] <= 'z'; i++ {
		if p[i+1] == ':' && i+2 < len(p) && p[i+2] == ']' {
			return string(p[2 : i+1]), i + 3
		}
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
