package expression

import "math"

// Rank is a parsed number; the zero value is 0 everywhere.
type Rank struct {
	text string
	root term
}

// NumberLookup finds the value of a name, and whether it has a numeric one.
type NumberLookup func(name string) (float64, bool)

// term is a node of the parsed number.
type term interface {
	value(NumberLookup) float64
}

// ParseRank reads a number; an empty one is 0. Errors are of class Invalid and say where.
//
//	NAME  n  e + e  e - e  e * e  e / e  -e  (e)
func ParseRank(text string) (Rank, error) {
	l, err := newLexer(text)
	if err != nil {
		return Rank{}, err
	}
	if l.ahead.kind == end {
		return Rank{text: text}, nil
	}
	root, err := parseSum(l)
	if err == nil && l.ahead.kind != end {
		err = l.unexpected("'+', '-', '*', '/' or the end")
	}
	if err != nil {
		return Rank{}, err
	}
	return Rank{text, root}, nil
}

// String is the text that was parsed.
func (r Rank) String() string { return r.text }

// Eval is the number, always finite so that ranks can be ordered: an unknown name and a division by
// zero count 0, and so does a result beyond all measure.
func (r Rank) Eval(lookup func(name string) (float64, bool)) float64 {
	if r.root == nil {
		return 0
	}
	return finite(r.root.value(lookup))
}

// series is a op b op c ... of one precedence, from the left.
type series struct {
	terms []term
	ops   []string // ops[i] stands before terms[i+1]
}

func parseSeries(l *lexer, op1, op2 string, parse func(*lexer) (term, error)) (term, error) {
	first, err := parse(l)
	if err != nil {
		return nil, err
	}
	s := series{terms: []term{first}}
	for l.ahead.is(op1) || l.ahead.is(op2) {
		op, err := l.take()
		if err != nil {
			return nil, err
		}
		next, err := parse(l)
		if err != nil {
			return nil, err
		}
		s.terms = append(s.terms, next)
		s.ops = append(s.ops, op.text)
	}
	if len(s.terms) == 1 {
		return first, nil
	}
	return s, nil
}

func (s series) value(lookup NumberLookup) float64 {
	result := s.terms[0].value(lookup)
	for i, op := range s.ops {
		next := s.terms[i+1].value(lookup)
		switch op {
		case "+":
			result += next
		case "-":
			result -= next
		case "*":
			result *= next
		default:
			if next == 0 {
				result = 0
			} else {
				result /= next
			}
		}
	}
	return result
}

func parseSum(l *lexer) (term, error)     { return parseSeries(l, "+", "-", parseProduct) }
func parseProduct(l *lexer) (term, error) { return parseSeries(l, "*", "/", parseFactor) }

type constant float64

func (c constant) value(NumberLookup) float64 { return float64(c) }

type variable string

func (v variable) value(lookup NumberLookup) float64 {
	n, ok := lookup(string(v))
	if !ok {
		return 0
	}
	return finite(n)
}

type minus struct{ term term }

func (m minus) value(lookup NumberLookup) float64 { return -m.term.value(lookup) }

func parseFactor(l *lexer) (term, error) {
	up, err := l.nest()
	if err != nil {
		return nil, err
	}
	defer up()
	if ok, err := l.takeOperator("-"); err != nil {
		return nil, err
	} else if ok {
		inner, err := parseFactor(l)
		return minus{inner}, err
	}
	if ok, err := l.takeOperator("("); err != nil {
		return nil, err
	} else if ok {
		inner, err := parseSum(l)
		if err != nil {
			return nil, err
		}
		return inner, l.expect(")")
	}
	switch {
	case l.ahead.kind == number:
		t, err := l.take()
		return constant(parseNumber(t.text)), err
	case l.ahead.kind == word, l.ahead.kind == quoted && l.ahead.text != "":
		t, err := l.take()
		return variable(t.text), err
	}
	return nil, l.unexpected("a name, a number, '-' or '('")
}

func finite(n float64) float64 {
	if math.IsInf(n, 0) || math.IsNaN(n) {
		return 0
	}
	return n
}
