package template

import (
	"bytes"
	"encoding/json"
	"strings"

	"hayloft/cloud/fault"
)

// MarshalJSON makes an object with one member a name, in the order of first use: a string, an object
// for a vector, or an array of both when the name repeats.
func (t Template) MarshalJSON() ([]byte, error) {
	var order []string
	groups := map[string][]Attribute{}
	for _, a := range t.Attributes {
		if len(groups[a.Name]) == 0 {
			order = append(order, a.Name)
		}
		groups[a.Name] = append(groups[a.Name], a)
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i, name := range order {
		if i > 0 {
			b.WriteByte(',')
		}
		jsonString(&b, name)
		b.WriteByte(':')
		group := groups[name]
		if len(group) == 1 {
			group[0].json(&b)
			continue
		}
		for i, a := range group {
			b.WriteByte("[,"[min(i, 1)])
			a.json(&b)
		}
		b.WriteByte(']')
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (a Attribute) json(b *bytes.Buffer) {
	if !a.IsVector {
		jsonString(b, a.Value)
		return
	}
	b.WriteByte('{')
	for i, p := range a.Vector {
		if i > 0 {
			b.WriteByte(',')
		}
		jsonString(b, p.Name)
		b.WriteByte(':')
		jsonString(b, p.Value)
	}
	b.WriteByte('}')
}

func jsonString(b *bytes.Buffer, s string) {
	text, _ := json.Marshal(s) // a string always has a JSON form
	b.Write(text)
}

// UnmarshalJSON reads what MarshalJSON writes. Numbers, true and false are taken as people write them.
func (t *Template) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var read Template
	tok, err := d.Token()
	if err != nil || tok != json.Delim('{') {
		return fault.Errorf(fault.Invalid, "template: a JSON object is expected, not %.20s", data)
	}
	if err := jsonObject(d, func(name string) error {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		if tok != json.Delim('[') {
			return read.addJSON(d, name, tok)
		}
		for d.More() {
			if tok, err = d.Token(); err != nil {
				return err
			}
			if err := read.addJSON(d, name, tok); err != nil {
				return err
			}
		}
		_, err = d.Token()
		return err
	}); err != nil {
		return fault.As(fault.Invalid, err)
	}
	*t = read
	return nil
}

// addJSON adds the attribute whose first token is tok.
func (t *Template) addJSON(d *json.Decoder, name string, tok json.Token) error {
	if tok != json.Delim('{') {
		value, err := jsonScalar(name, tok)
		t.add(single(name, value))
		return err
	}
	a := Attribute{Name: name, IsVector: true}
	seen := map[string]bool{}
	err := jsonObject(d, func(key string) error {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		value, err := jsonScalar(name+"/"+key, tok)
		if !seen[key] {
			seen[key] = true
			a.Vector = append(a.Vector, Pair{key, clean(value)})
		}
		return err
	})
	t.add(a)
	return err
}

// jsonObject calls each for every member of an opened object, and reads its end.
func jsonObject(d *json.Decoder, each func(name string) error) error {
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok || !validAttribute(name) {
			return fault.Errorf(fault.Invalid, "template: an attribute cannot be called %q", shorten(name))
		}
		if err := each(strings.ToUpper(name)); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func jsonScalar(name string, tok json.Token) (string, error) {
	switch v := tok.(type) {
	case string:
		if strings.Contains(v, cdataEnd) {
			return "", fault.Errorf(fault.Invalid, "attribute %s contains %q, which no value may", name, cdataEnd)
		}
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		if v {
			return "YES", nil
		}
		return "NO", nil
	}
	return "", fault.Errorf(fault.Invalid, "attribute %s: a string, number or boolean is expected, not %v", name, tok)
}
