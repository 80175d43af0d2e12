package template

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud/fault"

	"github.com/google/go-cmp/cmp"
)

// one is a template of single attributes, vec an attribute with keys, from names and values in turn.
func one(namesAndValues ...string) Template {
	var t Template
	for i := 0; i < len(namesAndValues); i += 2 {
		t.Add(namesAndValues[i], namesAndValues[i+1])
	}
	return t
}

func vec(name string, namesAndValues ...string) Attribute {
	a := Attribute{Name: name, IsVector: true}
	for i := 0; i < len(namesAndValues); i += 2 {
		a.Vector = append(a.Vector, Pair{namesAndValues[i], namesAndValues[i+1]})
	}
	return a
}

func TestParseText(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want Template
	}{
		"nothing":              {"", Template{}},
		"comments only":        {"# a\n\n  # b", Template{}},
		"bare":                 {"NAME = web-1", one("NAME", "web-1")},
		"upper case":           {"name=web-1", one("NAME", "web-1")},
		"two on a line":        {"A=1 B=2", one("A", "1", "B", "2")},
		"comment after value":  {"NAME = web-1# x\nCPU=1 # = [ \"", one("NAME", "web-1", "CPU", "1")},
		"quoted":               {`A = "x = [y], # z"`, one("A", "x = [y], # z")},
		"quoted over lines":    {"A = \"x\ny\"\nB=1", one("A", "x\ny", "B", "1")},
		"escaped quote":        {`A = "say \"hi\" \n \\ "`, one("A", `say "hi" \n \\`)},
		"backslashes stay":     {`A = "c:\dir\n"`, one("A", `c:\dir\n`)},
		"quote inside bare":    {`A = 5"`, one("A", `5"`)},
		"trimmed":              {"A = \"  x \n\"", one("A", "x")},
		"empty":                {"A =\nB =   \nC = \"\"", one("A", "", "B", "", "C", "")},
		"empty at the end":     {"A =", one("A", "")},
		"carriage returns":     {"A = 1\r\nB =\r\nC=2\r\n", one("A", "1", "B", "", "C", "2")},
		"repeated":             {"A=1\nA=2", one("A", "1", "A", "2")},
		"value on the name":    {"A\n= 1", one("A", "1")},
		"utf-8":                {"A = \"Grüße 日本\"\nB=ü", one("A", "Grüße 日本", "B", "ü")},
		"vector":               {`DISK = [ IMAGE = "tiny", size=10 ]`, Template{[]Attribute{vec("DISK", "IMAGE", "tiny", "SIZE", "10")}}},
		"vector over lines":    {"DISK=[ # first\n A=1 # one\n ,\n B=\"2\"\n]\nC=3", Template{[]Attribute{vec("DISK", "A", "1", "B", "2"), {Name: "C", Value: "3"}}}},
		"empty vector":         {"X = []\nY=[ \n ]", Template{[]Attribute{vec("X"), vec("Y")}}},
		"first key wins":       {"X=[A=1,a=2]", Template{[]Attribute{vec("X", "A", "1")}}},
		"vectors without room": {"X=[A=1]Y=[B=2]", Template{[]Attribute{vec("X", "A", "1"), vec("Y", "B", "2")}}},
		"byte order mark":      {"\uFEFFA=1", one("A", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(c.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseErrorsSayWhere(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"A", "unexpected end of file, expecting '=' after A at line 1, columns 2:2"},
		{"A = 1\n  B C", `unexpected "C", expecting '=' after B at line 2, columns 5:5`},
		{"= 1", "unexpected '=', expecting an attribute name (a value with = # , [ ] or white space needs quotes) at line 1, columns 1:1"},
		{"CMD = console=ttyS0", "unexpected '=', expecting an attribute name (a value with = # , [ ] or white space needs quotes) at line 1, columns 14:14"},
		{"A-B = 1", "unexpected '-', expecting '=' after A at line 1, columns 2:2"},
		{"A = # x", "unexpected '#', expecting a value (a value with = # , [ ] or white space needs quotes) at line 1, columns 5:5"},
		{"X = [ A = 1", "unexpected end of file, expecting ',' or ']' at line 1, columns 12:12"},
		{"X = [ A = 1 B = 2 ]", `unexpected "B", expecting ',' or ']' at line 1, columns 13:13`},
		{"X = [ A = 1, ]", "unexpected ']', expecting a key (a value with = # , [ ] or white space needs quotes) at line 1, columns 14:14"},
		{"X = [ A = [ B = 1 ] ]", "unexpected '[', expecting a value"},
		{"X = [ A =\n 1 ]", "unexpected end of line, expecting a value at line 1, columns 10:10"},
		{"N = 1\nA = \"x\ny", `unexpected end of file, expecting '"' to close the value at line 2, columns 5:5`},
		{`A = "x"y`, `unexpected "y", expecting white space after the closing quote at line 1, columns 8:8`},
		{"ü = 1", "unexpected 'ü', expecting an attribute name at line 1, columns 1:1"},
		{"A=\"ü\" ünö = 1", "unexpected 'ü', expecting an attribute name at line 1, columns 7:7"},
		{"9A = 1", `name "9A" begins with a digit at line 1, columns 1:2`},
		{"A = \"x ]]> y\"", `unexpected "]]>", which no value may contain at line 1, columns 8:10`},
		{"A = \"x\x00\"", "character U+0000 cannot stand in a template at line 1, columns 7:7"},
		{"A = 1\nB = \xff", "the text is not UTF-8 at line 2, columns 5:5"},
		{strings.Repeat("A", MaxSize+1), "a template of 1048577 bytes is too long, 1048576 are allowed"},
	} {
		got, err := Parse(c.text)
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "Parse error: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v\nwant %s", c.text, err, c.want)
		}
		if got.Attributes != nil {
			t.Errorf("%.40q: a template came with the error", c.text)
		}
	}
}

func TestParseXML(t *testing.T) {
	want := Template{[]Attribute{{Name: "NAME", Value: "a & b"}, vec("DISK", "IMAGE", "x", "SIZE", ""), vec("DISK", "IMAGE", "y"), {Name: "EMPTY"}}}
	for _, text := range []string{
		"<TEMPLATE><NAME>a &amp; b</NAME><DISK><IMAGE>x</IMAGE><SIZE/></DISK><DISK><IMAGE>y</IMAGE><IMAGE>z</IMAGE></DISK><EMPTY/></TEMPLATE>",
		"\n<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- c -->\n<VM>\n <NAME><![CDATA[ a & b ]]></NAME>\n<DISK> <image>x</image><SIZE></SIZE></DISK><DISK><IMAGE>y</IMAGE></DISK>\n<empty a=\"b\"></empty></VM>\n",
	} {
		got, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestParseXMLErrors(t *testing.T) {
	for text, want := range map[string]string{
		"<A>":                       "unexpected EOF",
		"<A><B>1</A>":               "element <B> closed by </A>",
		"<A>\n<B>1</C></A>":         "at line 2",
		"<A/><B/>":                  "a second root element B",
		"<A/>x":                     "text outside of the root element",
		"<?x?> y <A/>":              "text outside of the root element",
		"<":                         "unexpected EOF",
		"<A><B><C><D/></C></B></A>": "vectors do not nest, as B/C would have it",
		"<A><B>x<C>1</C></B></A>":   "B has both text and elements",
		"<A>x<B/></A>":              "text outside of an attribute",
		"<A><B-C>1</B-C></A>":       "an attribute cannot be called B-C",
		"<A><B>]]&gt;</B></A>":      `B contains "]]>"`,
		"<!DOCTYPE a [<!ENTITY b \"c\">]><A><B>&b;</B></A>": "invalid character entity",
		strings.Repeat("<A>", 100000):                       "vectors do not nest",
	} {
		_, err := Parse(text)
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "Parse error: XML Template malformed.") || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v\nwant %s", text, err, want)
		}
	}
}

// Long inputs that look bad for a parser end in reasonable time: anything quadratic would not.
func TestNoInputIsSlow(t *testing.T) {
	begin := processorTime(t)
	for _, unit := range []string{"A=\n", "A=[A=1]", `\"`, "#", "[", "A", "\n", `A="\"" `, "<A/>", "=", "A=[B=1,\n"} {
		text := strings.Repeat(unit, MaxSize/4/len(unit))
		for _, head := range []string{"", "X=[", `X="`, "<T>"} {
			if parsed, err := Parse(head + text); err == nil {
				merged := parsed.Clone()
				merged.Merge(parsed)
			}
		}
	}
	keys := "X=["
	for i := range 90000 {
		keys += "K" + strings.Repeat("x", i%3) + "=1,"
		if len(keys) > MaxSize/8 {
			break
		}
	}
	if _, err := Parse(keys + "Z=1]"); err != nil {
		t.Error(err)
	}
	if took := processorTime(t) - begin; took > 30*time.Second {
		t.Errorf("took %v of the processor", took)
	}
}

// processorTime is what this process has used: on a busy machine that is far less than what has passed.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
