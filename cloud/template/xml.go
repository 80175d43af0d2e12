package template

import (
	"cmp"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"

	"hayloft/cloud/fault"
)

const cdataEnd = "]]>"

// CDATA writes a value as OpenNebula's bodies carry it. Whatever XML cannot hold in a CDATA section is
// split, escaped or replaced.
func CDATA(value string) string {
	value = strings.ReplaceAll(strings.ToValidUTF8(value, "\uFFFD"), cdataEnd, "]]]]><![CDATA[>")
	value = strings.Map(func(r rune) rune {
		if !carried(r) {
			return '\uFFFD'
		}
		return r
	}, value)
	return "<![CDATA[" + strings.ReplaceAll(value, "\r", "]]>&#13;<![CDATA[") + cdataEnd
}

// XML is the template as an element: children sorted by name, those of the same name in order, every
// value in CDATA. An empty vector is an empty element, which reads back as an empty value.
func (t Template) XML(root string) string {
	return "<" + root + ">" + t.innerXML() + "</" + root + ">"
}

// MarshalXML puts the template into a larger body under the element that the body names.
func (t Template) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	return e.EncodeElement(struct {
		Inner string `xml:",innerxml"`
	}{t.innerXML()}, start)
}

func (t Template) innerXML() string {
	sorted := slices.Clone(t.Attributes)
	slices.SortStableFunc(sorted, func(a, b Attribute) int { return cmp.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, a := range sorted {
		if !a.IsVector {
			leaf(&b, a.Name, a.Value)
			continue
		}
		keys := slices.Clone(a.Vector)
		slices.SortStableFunc(keys, func(p, q Pair) int { return cmp.Compare(p.Name, q.Name) })
		b.WriteString("<" + a.Name + ">")
		for _, p := range keys {
			leaf(&b, p.Name, p.Value)
		}
		b.WriteString("</" + a.Name + ">")
	}
	return b.String()
}

func leaf(b *strings.Builder, name, value string) {
	b.WriteString("<" + name + ">" + CDATA(value) + "</" + name + ">")
}

// UnmarshalXML reads the element as Parse does.
func (t *Template) UnmarshalXML(d *xml.Decoder, _ xml.StartElement) error {
	r := xmlReader{d: d}
	read, err := r.template()
	if err == nil {
		*t = read
	}
	return err
}

func parseXML(input string) (Template, error) {
	r := xmlReader{d: xml.NewDecoder(strings.NewReader(input))}
	for {
		tok, err := r.d.Token()
		if err != nil {
			return Template{}, r.malformed(err)
		}
		if _, ok := tok.(xml.StartElement); ok {
			break
		}
		if err := r.onlyBlank(tok); err != nil {
			return Template{}, err
		}
	}
	t, err := r.template()
	if err != nil {
		return Template{}, err
	}
	for {
		tok, err := r.d.Token()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return Template{}, r.malformed(err)
		}
		if start, ok := tok.(xml.StartElement); ok {
			return Template{}, r.malformed(errors.New("a second root element " + shorten(start.Name.Local)))
		}
		if err := r.onlyBlank(tok); err != nil {
			return Template{}, err
		}
	}
}

func (r xmlReader) onlyBlank(tok xml.Token) error {
	if text, ok := tok.(xml.CharData); ok && strings.Trim(string(text), blank) != "" {
		return r.malformed(errors.New("text outside of the root element"))
	}
	return nil
}

type xmlReader struct {
	d *xml.Decoder
}

// template reads the children of an element that has been opened, and its end.
func (r xmlReader) template() (Template, error) {
	var t Template
	text, err := r.children(func(name string) error {
		a := Attribute{Name: name}
		seen := map[string]bool{}
		value, err := r.children(func(key string) error {
			text, err := r.children(func(string) error {
				return r.malformed(errors.New("vectors do not nest, as " + name + "/" + key + " would have it"))
			})
			if !seen[key] {
				seen[key] = true
				a.Vector = append(a.Vector, Pair{key, text})
			}
			return err
		})
		switch {
		case err != nil:
			return err
		case len(a.Vector) == 0:
			a.Value = value
		case value != "":
			return r.malformed(errors.New(name + " has both text and elements"))
		default:
			a.IsVector = true
		}
		t.add(a)
		return nil
	})
	if err == nil && text != "" {
		err = r.malformed(errors.New("text outside of an attribute"))
	}
	return t, err
}

// children calls each for every element inside the open one, which each must read to its end, and
// returns the text between them.
func (r xmlReader) children(each func(name string) error) (string, error) {
	var text strings.Builder
	for {
		tok, err := r.d.Token()
		if err != nil {
			return "", r.malformed(err)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			text.Write(tok)
		case xml.StartElement:
			if !validAttribute(tok.Name.Local) {
				return "", r.malformed(errors.New("an attribute cannot be called " + shorten(tok.Name.Local)))
			}
			if err := each(strings.ToUpper(tok.Name.Local)); err != nil {
				return "", err
			}
		case xml.EndElement:
			value := strings.Trim(text.String(), blank)
			if strings.Contains(value, cdataEnd) {
				return "", r.malformed(errors.New(tok.Name.Local + ` contains "` + cdataEnd + `", which no value may`))
			}
			return value, nil
		}
	}
}

func (r xmlReader) malformed(err error) error {
	line, column := r.d.InputPos()
	var syntax *xml.SyntaxError
	reason := err.Error()
	switch {
	case errors.As(err, &syntax):
		reason = syntax.Msg
	case err == io.EOF:
		reason = "unexpected end of file"
	}
	return fault.Errorf(fault.Invalid, "Parse error: XML Template malformed. %s at line %d, columns %d:%d", reason, line, column, column)
}
