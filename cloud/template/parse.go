package template

import (
	"strings"
	"unicode/utf8"

	"hayloft/cloud/fault"
)

// MaxSize is the longest input that Parse takes, in bytes.
const MaxSize = 1 << 20

// Parse reads the text form, or the XML form when the first character is <. Errors are of class
// Invalid, begin with "Parse error" and say where.
func Parse(input string) (Template, error) {
	if len(input) > MaxSize {
		return Template{}, fault.Errorf(fault.Invalid, "Parse error: a template of %d bytes is too long, %d are allowed", len(input), MaxSize)
	}
	input = strings.TrimPrefix(input, "\uFEFF")
	if rest := strings.TrimLeft(input, blank); strings.HasPrefix(rest, "<") {
		return parseXML(rest)
	}
	p := parser{text: input}
	return p.template()
}

// parser reads the text form: recursive descent over bytes, which is enough since everything that
// has a meaning is ASCII.
type parser struct {
	text string
	pos  int
}

func (p *parser) template() (Template, error) {
	if err := p.characters(); err != nil {
		return Template{}, err
	}
	var t Template
	for p.skip(); p.pos < len(p.text); p.skip() {
		a, err := p.attribute()
		if err != nil {
			return Template{}, err
		}
		t.add(a)
	}
	return t, nil
}

// characters refuses at once what could not be passed on.
func (p *parser) characters() error {
	for i, r := range p.text {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(p.text[i:]); size == 1 {
				return p.failf(i, i+1, "the text is not UTF-8")
			}
		}
		if !carried(r) {
			return p.failf(i, i+1, "character %U cannot stand in a template", r)
		}
	}
	return nil
}

func (p *parser) attribute() (Attribute, error) {
	name, err := p.assigned("an attribute name")
	if err != nil {
		return Attribute{}, err
	}
	p.skipInline()
	switch p.peek() {
	case 0, '\n':
		return Attribute{Name: name}, nil
	case '[':
		p.pos++
		v, err := p.vector()
		return Attribute{Name: name, Vector: v, IsVector: true}, err
	}
	value, err := p.value()
	return Attribute{Name: name, Value: value}, err
}

// vector reads what follows the opening bracket.
func (p *parser) vector() (Vector, error) {
	var v Vector
	seen := map[string]bool{}
	if p.skip(); p.peek() == ']' {
		p.pos++
		return v, nil
	}
	for {
		name, err := p.assigned("a key")
		if err != nil {
			return nil, err
		}
		p.skipInline()
		value, err := p.value()
		if err != nil {
			return nil, err
		}
		if !seen[name] {
			seen[name] = true
			v = append(v, Pair{name, value})
		}
		p.skip()
		switch p.peek() {
		case ',':
			p.pos++
			p.skip()
		case ']':
			p.pos++
			return v, nil
		default:
			return nil, p.unexpected("',' or ']'")
		}
	}
}

// assigned reads NAME =.
func (p *parser) assigned(what string) (string, error) {
	start := p.pos
	for isNameByte(p.peek()) {
		p.pos++
	}
	name := p.text[start:p.pos]
	switch {
	case name == "":
		return "", p.unexpected(what)
	case !validAttribute(name):
		return "", p.failf(start, p.pos, "name %q begins with a digit", shorten(name))
	}
	if p.skip(); p.peek() != '=' {
		return "", p.unexpected("'=' after " + shorten(name))
	}
	p.pos++
	return strings.ToUpper(name), nil
}

// value reads a quoted or a bare value.
func (p *parser) value() (string, error) {
	start := p.pos
	if p.peek() != '"' {
		for c := p.peek(); c != 0 && !strings.ContainsRune(blank+"=#,[]", rune(c)); c = p.peek() {
			p.pos++
		}
		if p.pos == start {
			return "", p.unexpected("a value")
		}
		return p.text[start:p.pos], nil
	}
	end := start + 1
	for ; end < len(p.text) && p.text[end] != '"'; end++ {
		if strings.HasPrefix(p.text[end:], `\"`) {
			end++
		}
	}
	if end >= len(p.text) {
		return "", p.failf(start, start+1, `unexpected end of file, expecting '"' to close the value`)
	}
	quoted := p.text[start+1 : end]
	if at := strings.Index(quoted, cdataEnd); at >= 0 {
		return "", p.failf(start+1+at, start+1+at+len(cdataEnd), "unexpected %q, which no value may contain", cdataEnd)
	}
	p.pos = end + 1
	if c := p.peek(); c != 0 && !strings.ContainsRune(blank+"#,]", rune(c)) {
		return "", p.unexpected("white space after the closing quote")
	}
	return strings.Trim(strings.ReplaceAll(quoted, `\"`, `"`), blank), nil
}

// skip passes over white space, line ends and comments; skipInline stays on the line.
func (p *parser) skip() {
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; {
		case c == '#':
			if end := strings.IndexByte(p.text[p.pos:], '\n'); end >= 0 {
				p.pos += end
			} else {
				p.pos = len(p.text)
			}
		case strings.IndexByte(blank, c) >= 0:
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) skipInline() {
	for c := p.peek(); c == ' ' || c == '\t' || c == '\r'; c = p.peek() {
		p.pos++
	}
}

// peek is the byte ahead, 0 at the end: characters has refused that one in the text.
func (p *parser) peek() byte {
	if p.pos >= len(p.text) {
		return 0
	}
	return p.text[p.pos]
}

// unexpected complains about what is ahead.
func (p *parser) unexpected(expecting string) error {
	start, end := p.pos, p.pos
	for end < len(p.text) && isNameByte(p.text[end]) {
		end++
	}
	var found string
	switch {
	case start >= len(p.text):
		found = "end of file"
	case end > start:
		found = `"` + shorten(p.text[start:end]) + `"`
	case p.text[start] == '\n':
		end, found = start+1, "end of line"
	default:
		_, size := utf8.DecodeRuneInString(p.text[start:])
		end = start + size
		found = "'" + p.text[start:end] + "'"
		if strings.Contains("=#,[]", p.text[start:end]) {
			expecting += " (a value with = # , [ ] or white space needs quotes)"
		}
	}
	return p.failf(start, end, "unexpected %s, expecting %s", found, expecting)
}

// failf makes the error for the bytes from start to end. Lines and columns count from 1, columns in
// characters.
func (p *parser) failf(start, end int, format string, args ...any) error {
	line := 1 + strings.Count(p.text[:start], "\n")
	first := 1 + utf8.RuneCountInString(p.text[strings.LastIndexByte(p.text[:start], '\n')+1:start])
	last := first + max(0, utf8.RuneCountInString(p.text[start:end])-1)
	return fault.Errorf(fault.Invalid, "Parse error: syntax error, "+format+" at line %d, columns %d:%d", append(args, line, first, last)...)
}

func isNameByte(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_'
}

// validAttribute says whether a name can be an attribute's. A digit cannot begin it: the XML form
// has names as elements.
func validAttribute(name string) bool {
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	for i := range len(name) {
		if !isNameByte(name[i]) {
			return false
		}
	}
	return true
}
