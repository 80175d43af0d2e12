// Package template is OpenNebula's template language: an ordered list of attributes, each a single
// value or a vector of named values, with a text form, an XML form and a JSON form.
//
// Names are upper case and values carry no white space at their ends; everything that adds to a
// template brings them into that form.
package template

import (
	"slices"
	"strings"
)

// Template is an ordered list of attributes; names may repeat. The zero value is empty and ready to
// use. A copy shares its attributes with the original: use Clone before changing one of them.
type Template struct {
	Attributes []Attribute
}

// Attribute is NAME = Value or, when IsVector, NAME = [ Vector ].
type Attribute struct {
	Name     string
	Value    string
	Vector   Vector
	IsVector bool
}

// Vector is the inside of NAME = [ ... ]. A key occurs once.
type Vector []Pair

// Pair is one KEY = value of a vector.
type Pair struct {
	Name, Value string
}

// Has says whether there is an attribute of that name, single or vector.
func (t Template) Has(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc(t.Attributes, func(a Attribute) bool { return a.Name == name })
}

// Get is the first single value of that name.
func (t Template) Get(name string) (string, bool) {
	name = strings.ToUpper(name)
	for _, a := range t.Attributes {
		if a.Name == name && !a.IsVector {
			return a.Value, true
		}
	}
	return "", false
}

// Values are all single values of that name, in order.
func (t Template) Values(name string) []string {
	name = strings.ToUpper(name)
	var all []string
	for _, a := range t.Attributes {
		if a.Name == name && !a.IsVector {
			all = append(all, a.Value)
		}
	}
	return all
}

// GetVector is the first vector of that name, shared with the template: to change it, change a copy
// and put that in with SetVector.
func (t Template) GetVector(name string) (Vector, bool) {
	name = strings.ToUpper(name)
	for _, a := range t.Attributes {
		if a.Name == name && a.IsVector {
			return a.Vector, true
		}
	}
	return nil, false
}

// GetAll are all vectors of that name, in order: the DISKs of a machine. They are shared as with
// GetVector.
func (t Template) GetAll(name string) []Vector {
	name = strings.ToUpper(name)
	var all []Vector
	for _, a := range t.Attributes {
		if a.Name == name && a.IsVector {
			all = append(all, a.Vector)
		}
	}
	return all
}

// Add appends a single value.
func (t *Template) Add(name, value string) { t.add(single(name, value)) }

// AddVector appends a vector.
func (t *Template) AddVector(name string, v Vector) { t.add(vector(name, v)) }

// Set makes value the only attribute of that name, at the place of the first one or at the end.
func (t *Template) Set(name, value string) { t.replace(name, single(name, value)) }

// SetVector makes v the only attribute of that name, at the place of the first one or at the end.
func (t *Template) SetVector(name string, v Vector) { t.replace(name, vector(name, v)) }

// SetAll makes the vectors all there is of that name, in order, at the place of the first one or at
// the end. It is how a list such as the DISKs that GetAll returned is written back.
func (t *Template) SetAll(name string, all []Vector) {
	list := make([]Attribute, len(all))
	for i, v := range all {
		list[i] = vector(name, v)
	}
	t.replace(name, list...)
}

// Delete removes all attributes of that name and says how many there were.
func (t *Template) Delete(name string) int {
	name = strings.ToUpper(name)
	kept := make([]Attribute, 0, len(t.Attributes))
	for _, a := range t.Attributes {
		if a.Name != name {
			kept = append(kept, a)
		}
	}
	removed := len(t.Attributes) - len(kept)
	t.Attributes = kept
	return removed
}

// Merge is OpenNebula's update with append 1: every name in other takes the place of all attributes
// of that name; an empty vector only removes them.
func (t *Template) Merge(other Template) {
	replaced := map[string]bool{}
	for _, a := range other.Attributes {
		replaced[a.Name] = true
	}
	merged := make([]Attribute, 0, len(t.Attributes)+len(other.Attributes))
	for _, a := range t.Attributes {
		if !replaced[a.Name] {
			merged = append(merged, a)
		}
	}
	for _, a := range other.Attributes {
		if !a.IsVector || len(a.Vector) > 0 {
			merged = append(merged, a.clone())
		}
	}
	t.Attributes = merged
}

// Clone copies everything.
func (t Template) Clone() Template {
	if t.Attributes == nil {
		return Template{}
	}
	c := Template{make([]Attribute, len(t.Attributes))}
	for i, a := range t.Attributes {
		c.Attributes[i] = a.clone()
	}
	return c
}

func (a Attribute) clone() Attribute {
	a.Vector = slices.Clone(a.Vector)
	return a
}

func (t *Template) add(a Attribute) { t.Attributes = append(t.Attributes, a) }

func (t *Template) replace(name string, with ...Attribute) {
	name = strings.ToUpper(name)
	at := slices.IndexFunc(t.Attributes, func(a Attribute) bool { return a.Name == name })
	t.Delete(name)
	if at < 0 {
		at = len(t.Attributes)
	}
	t.Attributes = slices.Insert(t.Attributes, at, with...)
}

func single(name, value string) Attribute {
	return Attribute{Name: strings.ToUpper(name), Value: clean(value)}
}

func vector(name string, v Vector) Attribute {
	a := Attribute{Name: strings.ToUpper(name), IsVector: true}
	for _, p := range v {
		a.Vector.Set(p.Name, p.Value)
	}
	return a
}

// Get is the value of a key.
func (v Vector) Get(name string) (string, bool) {
	name = strings.ToUpper(name)
	for _, p := range v {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// Set gives a key a value, in its place or at the end.
func (v *Vector) Set(name, value string) {
	name, value = strings.ToUpper(name), clean(value)
	for i := range *v {
		if (*v)[i].Name == name {
			(*v)[i].Value = value
			return
		}
	}
	*v = append(*v, Pair{name, value})
}

// Delete removes a key and says whether it was there.
func (v *Vector) Delete(name string) bool {
	name = strings.ToUpper(name)
	at := slices.IndexFunc(*v, func(p Pair) bool { return p.Name == name })
	if at < 0 {
		return false
	}
	*v = slices.Delete(*v, at, at+1)
	return true
}

const blank = " \t\r\n"

// clean brings a value into the form that all three codecs can carry.
func clean(value string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if !carried(r) {
			return '\uFFFD'
		}
		return r
	}, value), blank)
}

// carried says whether XML 1.0, and so everything that reads templates, can carry a character.
func carried(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000
}
