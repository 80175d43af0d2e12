package template

import (
	"math"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

// getter is what Template and Vector have in common.
type getter func(name string) (string, bool)

// Int is a whole number. An empty value counts as absent. The error, of class Invalid, names the
// attribute.
func (t Template) Int(name string) (n int, present bool, err error) { return getInt(t.Get, name) }

// Float is a finite number. An empty value counts as absent.
func (t Template) Float(name string) (f float64, present bool, err error) {
	return getFloat(t.Get, name)
}

// Bool is YES or NO, or another usual word for them. An empty value counts as absent.
func (t Template) Bool(name string) (b, present bool, err error) { return getBool(t.Get, name) }

// Int is as for Template.
func (v Vector) Int(name string) (n int, present bool, err error) { return getInt(v.Get, name) }

// Float is as for Template.
func (v Vector) Float(name string) (f float64, present bool, err error) { return getFloat(v.Get, name) }

// Bool is as for Template.
func (v Vector) Bool(name string) (b, present bool, err error) { return getBool(v.Get, name) }

func getInt(get getter, name string) (int, bool, error) {
	text, _ := get(name)
	if text == "" {
		return 0, false, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, true, wrong(name, text, "a whole number")
	}
	return n, true, nil
}

func getFloat(get getter, name string) (float64, bool, error) {
	text, _ := get(name)
	if text == "" {
		return 0, false, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return 0, true, wrong(name, text, "a number")
	}
	return f, true, nil
}

func getBool(get getter, name string) (bool, bool, error) {
	text, _ := get(name)
	switch strings.ToUpper(text) {
	case "":
		return false, false, nil
	case "YES", "Y", "TRUE", "ON", "1":
		return true, true, nil
	case "NO", "N", "FALSE", "OFF", "0":
		return false, true, nil
	}
	return false, true, wrong(name, text, "YES or NO")
}

func wrong(name, text, want string) error {
	return fault.Errorf(fault.Invalid, "attribute %s: %q is not %s", strings.ToUpper(name), shorten(text), want)
}

// shorten keeps messages readable when a value is a whole file.
func shorten(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}
