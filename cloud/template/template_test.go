package template

import (
	"strings"
	"testing"

	"hayloft/cloud/fault"

	"github.com/google/go-cmp/cmp"
)

func mustParse(t *testing.T, text string) Template {
	t.Helper()
	parsed, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestReading(t *testing.T) {
	tpl := mustParse(t, "A=1\nA=2\nDISK=[IMAGE=x]\nDISK=[IMAGE=y,SIZE=5]\nB=[]\nB=3")
	if v, ok := tpl.Get("a"); !ok || v != "1" {
		t.Errorf("A = %q, %v", v, ok)
	}
	if v, ok := tpl.Get("DISK"); ok {
		t.Errorf("DISK is a vector and a value, %q", v)
	}
	if v, ok := tpl.Get("B"); !ok || v != "3" {
		t.Errorf("B = %q, %v", v, ok)
	}
	if diff := cmp.Diff([]string{"1", "2"}, tpl.Values("A")); diff != "" {
		t.Error(diff)
	}
	disks := tpl.GetAll("disk")
	if len(disks) != 2 {
		t.Fatalf("%d disks", len(disks))
	}
	if v, _ := disks[1].Get("image"); v != "y" {
		t.Errorf("second image is %q", v)
	}
	if n, ok, err := disks[1].Int("SIZE"); n != 5 || !ok || err != nil {
		t.Errorf("SIZE = %d, %v, %v", n, ok, err)
	}
	if v, ok := tpl.GetVector("DISK"); !ok || len(v) != 1 {
		t.Errorf("first disk is %v", v)
	}
	if _, ok := tpl.GetVector("A"); ok || tpl.Has("C") || !tpl.Has("b") {
		t.Error("what is there is not what was written")
	}
}

func TestNumbersAndBooleans(t *testing.T) {
	tpl := mustParse(t, "I=12\nNEG=-3\nF=0.5\nBAD=\"1 GB\"\nNAN=NaN\nINF=1e999\nY=yes\nN=NO\nEMPTY=\n")
	if n, ok, err := tpl.Int("NEG"); n != -3 || !ok || err != nil {
		t.Errorf("NEG = %d, %v, %v", n, ok, err)
	}
	if f, ok, err := tpl.Float("f"); f != 0.5 || !ok || err != nil {
		t.Errorf("F = %g, %v, %v", f, ok, err)
	}
	if f, ok, err := tpl.Float("I"); f != 12 || !ok || err != nil {
		t.Errorf("I = %g, %v, %v", f, ok, err)
	}
	if b, ok, err := tpl.Bool("Y"); !b || !ok || err != nil {
		t.Errorf("Y = %v, %v, %v", b, ok, err)
	}
	if b, ok, err := tpl.Bool("N"); b || !ok || err != nil {
		t.Errorf("N = %v, %v, %v", b, ok, err)
	}
	for _, name := range []string{"EMPTY", "ABSENT"} {
		if _, ok, err := tpl.Int(name); ok || err != nil {
			t.Errorf("%s: present %v, error %v", name, ok, err)
		}
		if _, ok, err := tpl.Float(name); ok || err != nil {
			t.Errorf("%s: present %v, error %v", name, ok, err)
		}
		if _, ok, err := tpl.Bool(name); ok || err != nil {
			t.Errorf("%s: present %v, error %v", name, ok, err)
		}
	}
	refused := func(err error, want string) {
		t.Helper()
		if !fault.Is(err, fault.Invalid) || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	_, _, err := tpl.Int("bad")
	refused(err, `attribute BAD: "1 GB" is not a whole number`)
	_, _, err = tpl.Int("F")
	refused(err, `attribute F: "0.5" is not a whole number`)
	_, _, err = tpl.Float("NAN")
	refused(err, `attribute NAN: "NaN" is not a number`)
	_, _, err = tpl.Float("INF")
	refused(err, `attribute INF: "1e999" is not a number`)
	_, _, err = tpl.Bool("BAD")
	refused(err, `attribute BAD: "1 GB" is not YES or NO`)
}

func TestChanging(t *testing.T) {
	tpl := mustParse(t, "A=1\nB=2\nA=3\nC=[X=1]")
	shared := tpl.Clone()
	tpl.Set("a", " 9\x01 ")
	tpl.Set("D", "4")
	tpl.SetVector("c", Vector{{"x", "2"}, {"Y", "3"}, {"X", "5"}})
	if diff := cmp.Diff("A=\"9\uFFFD\"\nB=\"2\"\nC=[\n  X=\"5\",\n  Y=\"3\" ]\nD=\"4\"\n", tpl.String()); diff != "" {
		t.Error(diff)
	}
	tpl.SetAll("c", []Vector{{{"x", "1"}}, {{"x", "2"}}})
	tpl.SetAll("E", []Vector{{}})
	tpl.SetAll("B", nil)
	if diff := cmp.Diff(mustParse(t, "A=\"9�\"\nC=[X=1]\nC=[X=2]\nD=4\nE=[]"), tpl); diff != "" {
		t.Error(diff)
	}
	if n := shared.Delete("A"); n != 2 || shared.Has("A") || shared.Delete("A") != 0 {
		t.Errorf("%d attributes deleted, left\n%s", n, shared)
	}
	v, _ := shared.GetVector("C")
	if !v.Delete("x") || v.Delete("x") || len(v) != 0 {
		t.Errorf("left %v", v)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	tpl := mustParse(t, "A=1\nC=[X=1]")
	before := tpl.String()
	c := tpl.Clone()
	c.Attributes[0].Value = "2"
	c.Attributes[1].Vector.Set("X", "2")
	if tpl.String() != before {
		t.Errorf("the original became\n%s", tpl)
	}
}

func TestMerge(t *testing.T) {
	for name, c := range map[string]struct{ old, update, want string }{
		"adds":                    {"A=1", "B=2", "A=1\nB=2"},
		"replaces all of a name":  {"A=1\nD=[X=1]\nD=[X=2]\nB=1", "D=[Y=3]", "A=1\nB=1\nD=[Y=3]"},
		"several of a name":       {"A=1", "A=2\nA=3", "A=2\nA=3"},
		"vector becomes single":   {"D=[X=1]", "D=1", "D=1"},
		"vector as a whole":       {"D=[X=1,Y=2]", "D=[X=5]", "D=[X=5]"},
		"empty vector deletes":    {"A=1\nD=[X=1]", "D=[]\nE=[]", "A=1"},
		"empty single stays":      {"A=1", "A=", "A="},
		"nothing changes nothing": {"A=1", "", "A=1"},
	} {
		t.Run(name, func(t *testing.T) {
			got := mustParse(t, c.old)
			got.Merge(mustParse(t, c.update))
			if diff := cmp.Diff(mustParse(t, c.want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", "tiny.tar.gz", "Web 1 (ü)", "x=y@z,[1]*?", strings.Repeat("ü", 128)} {
		if err := ValidName("image", name); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct{ kind, name, want string }{
		{"image", "", "image name is empty"},
		{"image", "a/b", `image name "a/b": it contains "/", none of &|:\";/'#{}$<> is allowed`},
		{"host", "a\nb", `host name "a\nb": it contains the control character U+000A`},
		{"host", "a\u2028b", "control character U+2028"},
		{"host", "a\tb", "control character U+0009"},
		{"image", "..", "it means a directory"},
		{"image", " a", "begins or ends with white space"},
		{"image", "a\xff", "not UTF-8"},
		{"user", "a b", `user name "a b": it contains a space`},
		{"group", "a b", "it contains a space"},
		{"image", strings.Repeat("ü", 129), "it has 129 characters, 128 are allowed"},
		{"image", "$x", `it contains "$"`},
	} {
		err := ValidName(c.kind, c.name)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %s", c.kind, c.name, err, c.want)
		}
	}
	for _, r := range `&|:\";/'#{}$<>` {
		if ValidName("network", "a"+string(r)) == nil {
			t.Errorf("%q is taken", r)
		}
	}
}
