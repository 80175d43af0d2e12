// Package expression is the language of SCHED_REQUIREMENTS (a condition on a host or datastore) and
// SCHED_RANK (a number, the highest wins), as OpenNebula has it.
package expression

import (
	"fmt"
	"strconv"
	"strings"
)

// currentVMs is a list of machines rather than one value: = asks whether one is among them.
const currentVMs = "CURRENT_VMS"

// Lookup finds all values of a name, none when it is unknown.
type Lookup func(name string) []string

// Bool is a parsed condition; the zero value is true everywhere.
type Bool struct {
	text string
	root condition
}

// condition is a node of the parsed condition.
type condition interface {
	holds(Lookup) bool
	// refusal says which part of a condition that does not hold is to blame.
	refusal(Lookup) string
}

// ParseBool reads a condition; an empty one is true. Errors are of class Invalid and say where.
//
//	NAME = v  NAME != v  NAME > n  NAME < n  NAME @> v  e & e  e | e  !e  (e)
//
// & and | have the same precedence and group from the left; ! holds for the one term after it.
func ParseBool(text string) (Bool, error) {
	l, err := newLexer(text)
	if err != nil {
		return Bool{}, err
	}
	if l.ahead.kind == end {
		return Bool{text: text}, nil
	}
	root, err := parseChain(l)
	if err == nil && l.ahead.kind != end {
		err = l.unexpected("'&', '|' or the end")
	}
	if err != nil {
		return Bool{}, err
	}
	return Bool{text, root}, nil
}

// String is the text that was parsed.
func (b Bool) String() string { return b.text }

// Eval says whether the condition holds. A comparison with an unknown name does not, whatever the
// comparison.
func (b Bool) Eval(lookup func(name string) []string) bool {
	return b.root == nil || b.root.holds(lookup)
}

// Refusal is the part of the condition that does not hold, with the value found, for a person to
// read; empty when the condition holds.
func (b Bool) Refusal(lookup func(name string) []string) string {
	if b.Eval(lookup) {
		return ""
	}
	return b.root.refusal(lookup)
}

// chain is a & b | c ..., evaluated from the left.
type chain struct {
	text  string
	terms []condition
	or    []bool // or[i] stands before terms[i+1]
}

func parseChain(l *lexer) (condition, error) {
	start := l.ahead.start
	first, err := parseTerm(l)
	if err != nil {
		return nil, err
	}
	c := chain{terms: []condition{first}}
	for l.ahead.is("&") || l.ahead.is("|") {
		op, err := l.take()
		if err != nil {
			return nil, err
		}
		term, err := parseTerm(l)
		if err != nil {
			return nil, err
		}
		c.terms = append(c.terms, term)
		c.or = append(c.or, op.text == "|")
	}
	if len(c.terms) == 1 {
		return first, nil
	}
	c.text = l.text[start:l.used]
	return c, nil
}

func (c chain) holds(lookup Lookup) bool {
	result := c.terms[0].holds(lookup)
	for i, or := range c.or {
		if result != or { // else the term cannot change it
			result = c.terms[i+1].holds(lookup)
		}
	}
	return result
}

func (c chain) refusal(lookup Lookup) string {
	for _, or := range c.or {
		if or {
			return c.text
		}
	}
	for _, term := range c.terms {
		if !term.holds(lookup) {
			return term.refusal(lookup)
		}
	}
	return c.text
}

// negation is !term.
type negation struct {
	text string
	term condition
}

func (n negation) holds(lookup Lookup) bool { return !n.term.holds(lookup) }
func (n negation) refusal(Lookup) string    { return n.text }

func parseTerm(l *lexer) (condition, error) {
	up, err := l.nest()
	if err != nil {
		return nil, err
	}
	defer up()
	start := l.ahead.start
	if ok, err := l.takeOperator("!"); err != nil {
		return nil, err
	} else if ok {
		term, err := parseTerm(l)
		return negation{l.text[start:l.used], term}, err
	}
	if ok, err := l.takeOperator("("); err != nil {
		return nil, err
	} else if ok {
		inner, err := parseChain(l)
		if err != nil {
			return nil, err
		}
		return inner, l.expect(")")
	}
	return parseComparison(l)
}

// comparison is NAME op value. value is a number, or a pattern with wildcards.
type comparison struct {
	text    string
	name    string
	op      string // = != > < @>
	numeric bool
	number  float64
	pattern pattern // empty matches nothing, not even the empty string
}

func parseComparison(l *lexer) (condition, error) {
	start := l.ahead.start
	if l.ahead.kind != word && l.ahead.kind != quoted || l.ahead.text == "" {
		return nil, l.unexpected("a name, '!' or '('")
	}
	name, err := l.take()
	if err != nil {
		return nil, err
	}
	c := comparison{name: name.text, op: l.ahead.text}
	switch {
	case l.ahead.is("="), l.ahead.is(">"), l.ahead.is("<"):
		_, err = l.take()
	case l.ahead.is("!"):
		c.op = "!="
		if _, err = l.take(); err == nil {
			err = l.expect("=")
		}
	case l.ahead.is("@"):
		c.op = "@>"
		if _, err = l.take(); err == nil {
			err = l.expect(">")
		}
	default:
		err = l.unexpected("'=', '!=', '>', '<' or '@>'")
	}
	if err == nil {
		err = c.value(l)
	}
	c.text = l.text[start:l.used]
	return c, err
}

// value reads the right side.
func (c *comparison) value(l *lexer) error {
	sign := 1.0
	if ok, err := l.takeOperator("-"); err != nil {
		return err
	} else if ok {
		sign = -1
	}
	switch {
	case l.ahead.kind == number:
		t, err := l.take()
		c.numeric, c.number = true, sign*parseNumber(t.text)
		return err
	case sign < 0, c.op == ">", c.op == "<":
		return l.unexpected("a number")
	case l.ahead.kind == word, l.ahead.kind == quoted:
		if n := len(l.ahead.text); n > maxPattern {
			return l.failf(l.ahead.start, l.ahead.end, "a string of %d bytes is too long, %d are allowed", n, maxPattern)
		}
		t, err := l.take()
		c.pattern = compile(t.text)
		return err
	}
	return l.unexpected("a number or a string")
}

func (c comparison) holds(lookup Lookup) bool {
	values := lookup(c.name)
	switch {
	case c.name == currentVMs && c.op == "=", c.op == "@>":
		return c.any(values)
	case c.name == currentVMs && c.op == "!=":
		return !c.any(values)
	case len(values) == 0:
		return false
	}
	if !c.numeric {
		return len(c.pattern) > 0 && c.pattern.match(values[0]) == (c.op == "=")
	}
	found, err := strconv.ParseFloat(strings.TrimSpace(values[0]), 64)
	if err != nil {
		return false
	}
	switch c.op {
	case ">":
		return found > c.number
	case "<":
		return found < c.number
	}
	return (found == c.number) == (c.op == "=")
}

func (c comparison) any(values []string) bool {
	for _, v := range values {
		if !c.numeric {
			if len(c.pattern) > 0 && c.pattern.match(v) {
				return true
			}
		} else if found, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil && found == c.number {
			return true
		}
	}
	return false
}

func (c comparison) refusal(lookup Lookup) string {
	switch values := lookup(c.name); len(values) {
	case 0:
		return fmt.Sprintf("%s, but %s is not known", c.text, c.name)
	case 1:
		return fmt.Sprintf("%s, but %s is %s", c.text, c.name, values[0])
	default:
		return fmt.Sprintf("%s, but %s has %s", c.text, c.name, strings.Join(values, ", "))
	}
}

// parseNumber reads a token that the lexer found to be digits with perhaps a point; one beyond all
// measure is infinite.
func parseNumber(text string) float64 {
	n, _ := strconv.ParseFloat(text, 64)
	return n
}
