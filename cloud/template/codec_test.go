package template

import (
	"encoding/json"
	"encoding/xml"
	"slices"
	"strings"
	"testing"

	"hayloft/cloud/fault"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var (
	anyName  = rapid.StringMatching(`[A-Z_][A-Z0-9_]{0,6}`)
	anyValue = rapid.OneOf(rapid.StringMatching(`[ -~\n\t\r]{0,12}`), rapid.String(), rapid.StringMatching(`["\\ ]{0,6}`)).
			Filter(func(s string) bool { return !strings.Contains(s, cdataEnd) })
)

var anyTemplate = rapid.Custom(func(t *rapid.T) Template {
	var tpl Template
	for range rapid.IntRange(0, 6).Draw(t, "attributes") {
		name := anyName.Draw(t, "name")
		if rapid.Bool().Draw(t, "single") {
			tpl.Add(name, anyValue.Draw(t, "value"))
			continue
		}
		var v Vector
		for range rapid.IntRange(0, 4).Draw(t, "pairs") {
			v.Set(anyName.Draw(t, "key"), anyValue.Draw(t, "value"))
		}
		tpl.AddVector(name, v)
	}
	return tpl
})

func TestTextReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyTemplate.Draw(t, "template")
		got, err := Parse(want.String())
		if err != nil {
			t.Fatalf("%v\n%s", err, want)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s\n%s", diff, want)
		}
	})
}

// sorted is what is left of a template after a way through XML: no order among different names, no
// empty vectors.
func sorted(t Template) Template {
	c := t.Clone()
	slices.SortStableFunc(c.Attributes, func(a, b Attribute) int { return strings.Compare(a.Name, b.Name) })
	for i := range c.Attributes {
		a := &c.Attributes[i]
		a.IsVector = len(a.Vector) > 0
		slices.SortFunc(a.Vector, func(p, q Pair) int { return strings.Compare(p.Name, q.Name) })
	}
	return c
}

func TestXMLReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyTemplate.Draw(t, "template")
		got, err := Parse(want.XML("TEMPLATE"))
		if err != nil {
			t.Fatalf("%v\n%s", err, want.XML("TEMPLATE"))
		}
		if diff := cmp.Diff(sorted(want), got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestJSONReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyTemplate.Draw(t, "template")
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Template
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for _, a := range want.Attributes {
			if diff := cmp.Diff(named(want, a.Name), named(got, a.Name)); diff != "" {
				t.Fatalf("%s\n%s", diff, text)
			}
		}
		if len(got.Attributes) != len(want.Attributes) {
			t.Fatalf("%d attributes became %d", len(want.Attributes), len(got.Attributes))
		}
	})
}

func named(t Template, name string) (all []Attribute) {
	for _, a := range t.Attributes {
		if a.Name == name {
			all = append(all, a)
		}
	}
	return all
}

func TestCanonicalText(t *testing.T) {
	parsed, err := Parse("name = web\ndisk=[image=tiny,size=\"1\"]\nnic=[]\npath=\"c:\\\\ \"")
	if err != nil {
		t.Fatal(err)
	}
	want := "NAME=\"web\"\nDISK=[\n  IMAGE=\"tiny\",\n  SIZE=\"1\" ]\nNIC=[ ]\nPATH=\"c:\\\\ \"\n"
	if got := parsed.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestCanonicalXML(t *testing.T) {
	tpl := Template{[]Attribute{{Name: "CPU", Value: "1"}, vec("DISK", "SIZE", "2", "IMAGE", "b"), {Name: "A", Value: "x]]>y"}, vec("DISK", "IMAGE", "a")}}
	inner := "<A><![CDATA[x]]]]><![CDATA[>y]]></A><CPU><![CDATA[1]]></CPU>" +
		"<DISK><IMAGE><![CDATA[b]]></IMAGE><SIZE><![CDATA[2]]></SIZE></DISK><DISK><IMAGE><![CDATA[a]]></IMAGE></DISK>"
	if got := tpl.XML("TEMPLATE"); got != "<TEMPLATE>"+inner+"</TEMPLATE>" {
		t.Errorf("got %s", got)
	}
	body, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"VM"`
		ID      int
		User    Template `xml:"USER_TEMPLATE"`
		Empty   Template `xml:"EMPTY"`
	}{ID: 1, User: tpl})
	if want := "<VM><ID>1</ID><USER_TEMPLATE>" + inner + "</USER_TEMPLATE><EMPTY></EMPTY></VM>"; err != nil || string(body) != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, body, want)
	}
	if got := CDATA("bell\a \xff"); got != "<![CDATA[bell\uFFFD \uFFFD]]>" {
		t.Errorf("got %q", got)
	}
	var split struct {
		Value string `xml:",chardata"`
	}
	if err := xml.Unmarshal([]byte("<A>"+CDATA("a]]>b\r\nc")+"</A>"), &split); err != nil || split.Value != "a]]>b\r\nc" {
		t.Errorf("%q, %v", split.Value, err)
	}
}

func TestJSON(t *testing.T) {
	tpl := Template{[]Attribute{{Name: "CPU", Value: "1"}, vec("DISK", "IMAGE", "a"), {Name: "B", Value: ""}, vec("DISK"), vec("NIC")}}
	want := `{"CPU":"1","DISK":[{"IMAGE":"a"},{}],"B":"","NIC":{}}`
	if got, err := json.Marshal(tpl); err != nil || string(got) != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, got, want)
	}
	var read Template
	if err := json.Unmarshal([]byte(`{"cpu":0.5,"disk":[{"size":1}],"hold":true,"x":["a",{"b":"c"}]}`), &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Template{[]Attribute{{Name: "CPU", Value: "0.5"}, vec("DISK", "SIZE", "1"), {Name: "HOLD", Value: "YES"}, {Name: "X", Value: "a"}, vec("X", "B", "c")}}, read); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{`[]`, `1`, `{"A":null}`, `{"A-B":"1"}`, `{"A":{"B":{"C":"1"}}}`, `{"A":[["1"]]}`, `{"A":{"B":[]}}`, `{"A":"]]>"}`, `{"9":"1"}`} {
		if err := json.Unmarshal([]byte(bad), &read); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v", bad, err)
		}
	}
}

func seeds(f *testing.F, texts ...string) {
	for _, text := range append(texts, "", "#", "A=\"\\\"", "A=\"\\ \"", "A=[B=\"\\\"\",C=\"\"]", "\uFEFF<A/>", "A=1 B=[] C=\nD = [ E = \"x\ny\" ]") {
		f.Add(text)
	}
}

func FuzzParseText(f *testing.F) {
	seeds(f, "NAME = web # c\nDISK = [ IMAGE = \"tiny\", SIZE = 10 ]\nSTART = \"#!/bin/sh\necho \\\"hi\\\"\"\n", "A=]]>", "A=\"]]>\"", "=[,]\"\\")
	f.Fuzz(readsBack)
}

func FuzzParseXML(f *testing.F) {
	seeds(f, "<T><A>1</A><B><C><![CDATA[x]]></C></B></T>", "<T><A/></T>", "<?xml version='1.0'?><T>&lt;</T>", "<a:b xmlns:a='c'><a:d>&#13;</a:d></a:b>", "<T><!-- --></T>")
	f.Fuzz(readsBack)
}

// readsBack checks that what was read, printed and read again is the same.
func readsBack(t *testing.T, text string) {
	first, err := Parse(text)
	if err != nil {
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "Parse error") {
			t.Fatalf("error of another kind: %v", err)
		}
		return
	}
	second, err := Parse(first.String())
	if err != nil {
		t.Fatalf("%v\n%s", err, first)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Fatal(diff)
	}
	third, err := Parse(first.XML("T"))
	if err != nil {
		t.Fatalf("%v\n%s", err, first.XML("T"))
	}
	if diff := cmp.Diff(sorted(first), third, cmpopts.EquateEmpty()); diff != "" {
		t.Fatal(diff)
	}
}
