package expression

import (
	"strings"
	"unicode/utf8"

	"hayloft/cloud/fault"
)

// maxSize is the longest expression and maxPattern the longest string in one, in bytes; maxDepth is
// how deep parentheses and signs may nest.
const (
	maxSize    = 64 << 10
	maxPattern = 4 << 10
	maxDepth   = 200
)

type kind int

const (
	end    kind = iota
	word        // a name or a string without quotes
	quoted      // a name or a string in quotes
	number
	operator // one character
)

// token is a piece of the text from start to end; text is without quotes.
type token struct {
	kind       kind
	text       string
	start, end int
}

func (t token) is(op string) bool { return t.kind == operator && t.text == op }

// lexer cuts an expression into tokens, with one to look ahead at.
type lexer struct {
	text  string
	ahead token
	used  int // where the last token taken ended
	depth int
}

func newLexer(text string) (*lexer, error) {
	if len(text) > maxSize {
		return nil, fault.Errorf(fault.Invalid, "Parse error: an expression of %d bytes is too long, %d are allowed", len(text), maxSize)
	}
	l := &lexer{text: text}
	return l, l.scan(0)
}

// take returns the token ahead and moves on.
func (l *lexer) take() (token, error) {
	t := l.ahead
	l.used = t.end
	return t, l.scan(t.end)
}

// takeOperator moves on when op is ahead.
func (l *lexer) takeOperator(op string) (bool, error) {
	if !l.ahead.is(op) {
		return false, nil
	}
	_, err := l.take()
	return true, err
}

// expect is takeOperator for an op that must be there.
func (l *lexer) expect(op string) error {
	ok, err := l.takeOperator(op)
	if err == nil && !ok {
		return l.unexpected("'" + op + "'")
	}
	return err
}

func (l *lexer) scan(pos int) error {
	for pos < len(l.text) && strings.IndexByte(" \t\r\n", l.text[pos]) >= 0 {
		pos++
	}
	l.ahead = token{start: pos, end: pos}
	if pos == len(l.text) {
		return nil
	}
	switch c := l.text[pos]; {
	case isLetter(c):
		l.span(word, func(c byte) bool { return isLetter(c) || isDigit(c) || c == '_' })
	case isDigit(c):
		l.span(number, isDigit)
		if rest := l.text[l.ahead.end:]; len(rest) > 1 && rest[0] == '.' && isDigit(rest[1]) {
			l.ahead.end++
			l.span(number, isDigit)
		}
	case c == '"':
		closing := strings.IndexByte(l.text[pos+1:], '"')
		if closing < 0 {
			return l.failf(pos, len(l.text), `unexpected end of expression, expecting '"' to close the string`)
		}
		l.ahead = token{quoted, l.text[pos+1 : pos+1+closing], pos, pos + closing + 2}
	case strings.IndexByte("@!&|=><()*+/-", c) >= 0:
		l.ahead = token{operator, l.text[pos : pos+1], pos, pos + 1}
	default:
		r, size := utf8.DecodeRuneInString(l.text[pos:])
		return l.failf(pos, pos+size, "unexpected %q (strings other than plain words need quotes)", r)
	}
	return nil
}

// span extends the token ahead over all bytes that belong to it.
func (l *lexer) span(k kind, belongs func(byte) bool) {
	t := &l.ahead
	for t.kind = k; t.end < len(l.text) && belongs(l.text[t.end]); {
		t.end++
	}
	t.text = l.text[t.start:t.end]
}

// nest counts how deep the parser is and returns what undoes it.
func (l *lexer) nest() (func(), error) {
	if l.depth++; l.depth > maxDepth {
		return nil, l.failf(l.ahead.start, l.ahead.end, "nested more than %d deep", maxDepth)
	}
	return func() { l.depth-- }, nil
}

func (l *lexer) unexpected(expecting string) error {
	found := "end of expression"
	if l.ahead.kind != end {
		found = "'" + l.text[l.ahead.start:l.ahead.end] + "'"
	}
	return l.failf(l.ahead.start, l.ahead.end, "unexpected %s, expecting %s", found, expecting)
}

// failf makes the error for the bytes from start to end. Lines and columns count from 1, columns in
// characters.
func (l *lexer) failf(start, end int, format string, args ...any) error {
	line := 1 + strings.Count(l.text[:start], "\n")
	first := 1 + utf8.RuneCountInString(l.text[strings.LastIndexByte(l.text[:start], '\n')+1:start])
	last := first + max(0, utf8.RuneCountInString(l.text[start:end])-1)
	return fault.Errorf(fault.Invalid, "Parse error: syntax error, "+format+" at line %d, columns %d:%d", append(args, line, first, last)...)
}

func isLetter(c byte) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
