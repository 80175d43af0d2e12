package template

import "strings"

// String is the text form, which Parse reads back into the same template. (A value with "]]>" in it,
// which Parse never makes, has no text form that OpenNebula reads.)
func (t Template) String() string {
	var b strings.Builder
	for _, a := range t.Attributes {
		b.WriteString(a.Name)
		b.WriteByte('=')
		if a.IsVector {
			a.Vector.write(&b)
		} else {
			quote(&b, a.Value)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// String is the vector with its brackets.
func (v Vector) String() string {
	var b strings.Builder
	v.write(&b)
	return b.String()
}

func (v Vector) write(b *strings.Builder) {
	b.WriteByte('[')
	for i, p := range v {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n  ")
		b.WriteString(p.Name)
		b.WriteByte('=')
		quote(b, p.Value)
	}
	b.WriteString(" ]")
}

func quote(b *strings.Builder, value string) {
	b.WriteByte('"')
	b.WriteString(strings.ReplaceAll(value, `"`, `\"`))
	if strings.HasSuffix(value, `\`) {
		// Or else it would escape the closing quote; white space at the end does not count.
		b.WriteByte(' ')
	}
	b.WriteByte('"')
}
