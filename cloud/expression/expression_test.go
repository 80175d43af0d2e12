package expression

import (
	"math"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud/fault"

	"pgregory.net/rapid"
)

// node is the host that the tables ask about.
var node = map[string][]string{
	"HYPERVISOR": {"kvm"}, "FREE_CPU": {"350"}, "ID": {"3"}, "NAME": {"node-7"}, "CLUSTER_ID": {"100"},
	"RUNNING_VMS": {"4"}, "CLUSTERS/ID": {"0", "100"}, "TM_MAD": {"local"}, "ARCH": {"x86_64"}, "LOAD": {"0.5"},
	"EMPTY": {""}, "TAGS": {"ssd", "gpu-a100"}, "CURRENT_VMS": {"5", "12"}, "TEMP": {"-5"}, "/HOST/NAME": {"abs"},
}

func find(name string) []string { return node[name] }

func findNumber(name string) (float64, bool) {
	for _, v := range node[name] {
		n, err := strconv.ParseFloat(v, 64)
		return n, err == nil
	}
	return 0, false
}

func TestConditions(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                  true,
		" \n":                               true,
		"HYPERVISOR = kvm & FREE_CPU > 200": true,
		`ID = "3" | NAME = "node-*"`:        true,
		`ID = "4" | NAME = "node-*"`:        true,
		"CLUSTER_ID = 100":                  true,
		"(CLUSTER_ID = 0 | CLUSTER_ID = 100) & !(PIN_POLICY = PINNED)": true,
		`("CLUSTERS/ID" @> 0) & (TM_MAD = "local")`:                    true,
		"HYPERVISOR=kvm&FREE_CPU>350":                                  false,
		"FREE_CPU<351":                                                 true,
		"FREE_CPU = 350.0":                                             true,
		"FREE_CPU != 350":                                              false,
		"FREE_CPU != 3":                                                true,
		"LOAD > 0.25":                                                  true,
		"TEMP = -5":                                                    true,
		"TEMP < -4.5":                                                  true,
		"HYPERVISOR != kvm":                                            false,
		"HYPERVISOR != lxc":                                            true,
		"HYPERVISOR = KVM":                                             false,
		"HYPERVISOR > 1":                                               false,
		"HYPERVISOR = 1":                                               false,
		"HYPERVISOR != 1":                                              false,
		`NAME = "node-?"`:                                              true,
		`NAME = "node-[0-6]"`:                                          false,
		`NAME = "node-[!0-6]"`:                                         true,
		`NAME != "node-*"`:                                             false,
		`ARCH = "x86*"`:                                                true,
		"TAGS = gpu":                                                   false,
		`TAGS @> "gpu-*"`:                                              true,
		"TAGS @> hdd":                                                  false,
		`"CLUSTERS/ID" @> 100`:                                         true,
		`"CLUSTERS/ID" @> 10`:                                          false,
		`"/HOST/NAME" = abs`:                                           true,
		"UNHEARD = 1":                                                  false,
		"UNHEARD != 1":                                                 false,
		"UNHEARD != x":                                                 false,
		"UNHEARD @> x":                                                 false,
		"!(UNHEARD = 1)":                                               true,
		"! UNHEARD = 1":                                                true,
		`EMPTY = ""`:                                                   false,
		`EMPTY = "*"`:                                                  true,
		"CURRENT_VMS = 12":                                             true,
		"CURRENT_VMS != 12":                                            false,
		"CURRENT_VMS != 6":                                             true,
		// One precedence, from the left: (true | false) & false.
		"ID = 3 | ID = 4 & ID = 5":   false,
		"ID = 3 | (ID = 4 & ID = 5)": true,
		"ID = 4 & ID = 5 | ID = 3":   true,
		"!ID = 4 & ID = 5":           false,
		"!ID = 4 | ID = 5":           true,
		"!!ID = 3":                   true,
	} {
		b, err := ParseBool(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if b.Eval(find) != want {
			t.Errorf("%s is %v", text, !want)
		}
		if b.String() != text {
			t.Errorf("%s became %s", text, b)
		}
	}
	if !(Bool{}).Eval(find) {
		t.Error("the zero condition does not hold")
	}
}

func TestCurrentVMsOfAnEmptyHost(t *testing.T) {
	none := func(string) []string { return nil }
	for text, want := range map[string]bool{"CURRENT_VMS = 5": false, "CURRENT_VMS != 5": true} {
		b, err := ParseBool(text)
		if err != nil || b.Eval(none) != want {
			t.Errorf("%s: want %v, error %v", text, want, err)
		}
	}
}

func TestConditionErrorsSayWhere(t *testing.T) {
	for text, want := range map[string]string{
		"FREE_CPU":                     "unexpected end of expression, expecting '=', '!=', '>', '<' or '@>' at line 1, columns 9:9",
		"FREE_CPU >= 5":                "unexpected '=', expecting a number at line 1, columns 11:11",
		"FREE_CPU > abc":               "unexpected 'abc', expecting a number at line 1, columns 12:14",
		"A = 1 &":                      "unexpected end of expression, expecting a name, '!' or '(' at line 1, columns 8:8",
		"A = 1 && B = 2":               "unexpected '&', expecting a name, '!' or '(' at line 1, columns 8:8",
		"A == 1":                       "unexpected '=', expecting a number or a string",
		"A = 1 B = 2":                  "unexpected 'B', expecting '&', '|' or the end at line 1, columns 7:7",
		"(A = 1":                       "unexpected end of expression, expecting ')' at line 1, columns 7:7",
		"A = 1)":                       "unexpected ')', expecting '&', '|' or the end",
		"A = 1\n& \"ü = 1":             `unexpected end of expression, expecting '"' to close the string at line 2, columns 3:8`,
		"A = 10.0.0.1":                 `unexpected '.' (strings other than plain words need quotes) at line 1, columns 9:9`,
		"A = node-*":                   "unexpected '-', expecting '&', '|' or the end",
		`"" = 1`:                       "expecting a name",
		"5 = A":                        "unexpected '5', expecting a name",
		"A @ 1":                        "unexpected '1', expecting '>'",
		"A ! 1":                        "unexpected '1', expecting '='",
		"A = $X":                       "unexpected '$'",
		"A = \xff":                     "unexpected '�'",
		"_A = 1":                       "unexpected '_'",
		strings.Repeat("(", 5000):      "nested more than 200 deep",
		strings.Repeat("!", 5000):      "nested more than 200 deep",
		strings.Repeat("A", maxSize+1): "too long",
		`A = "` + strings.Repeat("x", maxPattern+1) + `"`: "a string of 4097 bytes is too long",
	} {
		_, err := ParseBool(text)
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "Parse error: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v\nwant %s", text, err, want)
		}
	}
}

func TestRefusal(t *testing.T) {
	for text, want := range map[string]string{
		"ID = 3":                                 "",
		"HYPERVISOR = lxc":                       "HYPERVISOR = lxc, but HYPERVISOR is kvm",
		"ID = 3 & FREE_CPU > 400 & ID = 9":       "FREE_CPU > 400, but FREE_CPU is 350",
		"ID = 3 & (ID = 3 & PIN = 1)":            "PIN = 1, but PIN is not known",
		`ID = 3 & ("TAGS" @> hdd)`:               `"TAGS" @> hdd, but TAGS has ssd, gpu-a100`,
		"ID = 3 & (ID = 4 | ID = 5) & ID = 3":    "ID = 4 | ID = 5",
		"ID = 3 & !(HYPERVISOR = kvm) & ID = 9 ": "!(HYPERVISOR = kvm)",
	} {
		b, err := ParseBool(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := b.Refusal(find); got != want {
			t.Errorf("%s is refused with %q, want %q", text, got, want)
		}
	}
}

func TestWildcards(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"abc", "abc", true}, {"abc", "abcd", false}, {"abc", "ab", false}, {"*", "", true}, {"*", "a/b.c", true},
		{"?", "", false}, {"?", "ü", true}, {"a*c*e", "abcde", true}, {"a*c*e", "abcdef", false}, {"*a*", "bab", true},
		{"a**b", "ab", true}, {"[abc]", "b", true}, {"[a-c]x", "bx", true}, {"[!a-c]", "b", false}, {"[^a-c]", "d", true},
		{"[]a]", "]", true}, {"[!]a]", "]", false}, {"[a-]", "-", true}, {"[", "[", true}, {"[a", "[a", true}, {"[a", "a", false},
		{`\*`, "*", true}, {`\*`, "x", false}, {`a\`, `a\`, true}, {`[\]]`, "]", true}, {"[[:digit:]]", "7", true},
		{"[[:digit:]]", "x", false}, {"[![:alpha:]]", "7", true}, {"[[:upper:]x]*", "xyz", true}, {"[[:x]", ":", true},
		{"node-[0-9][0-9]", "node-07", true}, {"[z-a]", "m", false}, {"[[:digit:]", "[7", false},
	} {
		if got := compile(c.pattern).match(c.text); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.text, got)
		}
	}
}

func TestRanks(t *testing.T) {
	for text, want := range map[string]float64{
		"":                                0,
		"FREE_CPU":                        350,
		"FREE_CPU * 100 - RUNNING_VMS":    34996,
		"FREE_CPU-RUNNING_VMS":            346,
		"FREE_CPU -5":                     345,
		"-RUNNING_VMS":                    -4,
		"- RUNNING_VMS + 10":              6,
		"--RUNNING_VMS":                   4,
		"2 + 3 * 4":                       14,
		"(2 + 3) * 4":                     20,
		"20 / 2 / 5":                      2,
		"10 - 4 - 3":                      3,
		"2 * -3":                          -6,
		"0.5 * \"FREE_CPU\"":              175,
		"UNHEARD + 1":                     1,
		"HYPERVISOR + 1":                  1,
		"5 / 0":                           0,
		"5 / UNHEARD + 1":                 1,
		strings.Repeat("9", 400) + " * 9": 0,
	} {
		r, err := ParseRank(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := r.Eval(findNumber); got != want {
			t.Errorf("%.40s = %g, want %g", text, got, want)
		}
	}
	if (Rank{}).Eval(findNumber) != 0 {
		t.Error("the zero rank is not 0")
	}
	r, err := ParseRank("A - A")
	if got := r.Eval(func(string) (float64, bool) { return math.Inf(1), true }); err != nil || got != 0 {
		t.Errorf("infinity less infinity = %g, %v", got, err)
	}
}

func TestRankErrorsSayWhere(t *testing.T) {
	for text, want := range map[string]string{
		"FREE_CPU *":              "unexpected end of expression, expecting a name, a number, '-' or '(' at line 1, columns 11:11",
		"FREE_CPU RUNNING":        "unexpected 'RUNNING', expecting '+', '-', '*', '/' or the end at line 1, columns 10:16",
		"A > 1":                   "unexpected '>', expecting '+', '-', '*', '/' or the end",
		"(1 + 2":                  "expecting ')'",
		"+1":                      "unexpected '+'",
		"1.":                      "unexpected '.'",
		`""`:                      "expecting a name",
		strings.Repeat("-", 5000): "nested more than 200 deep",
	} {
		_, err := ParseRank(text)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v\nwant %s", text, err, want)
		}
	}
}

// A condition written out at random means what its pieces mean, evaluated from the left.
func TestConditionsMeanTheirParts(t *testing.T) {
	var piece func(t *rapid.T, depth int) (string, bool)
	piece = func(t *rapid.T, depth int) (string, bool) {
		truth := rapid.Bool().Draw(t, "truth")
		kind := rapid.IntRange(0, 3).Draw(t, "kind")
		switch {
		case depth > 3 || kind < 2:
			return map[bool]string{true: "ID = 3", false: `NAME = "x*"`}[truth], truth
		case kind == 2:
			text, value := piece(t, depth+1)
			return "!" + text, !value
		}
		text, value := piece(t, depth+1)
		for range rapid.IntRange(1, 4).Draw(t, "more") {
			next, with := piece(t, depth+1)
			if rapid.Bool().Draw(t, "or") {
				text, value = text+" | "+next, value || with
			} else {
				text, value = text+"&"+next, value && with
			}
		}
		return "(" + text + ")", value
	}
	rapid.Check(t, func(t *rapid.T) {
		text, want := piece(t, 0)
		b, err := ParseBool(text)
		if err != nil {
			t.Fatal(err)
		}
		if b.Eval(find) != want {
			t.Fatalf("%s is %v", text, !want)
		}
		if refusal := b.Refusal(find); (refusal == "") != want {
			t.Fatalf("%s is %v and refused with %q", text, want, refusal)
		}
	})
}

func FuzzParseBool(f *testing.F) {
	for _, s := range []string{"", "A=1", `"A/B" @> "x*" & !(C != 2 | D < -3.5)`, `A = "[[:digit:]`, "((", `"`, "CURRENT_VMS != 3"} {
		f.Add(s, "x")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		b, err := ParseBool(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		lookup := func(string) []string { return []string{value, "1"} }
		if holds := b.Eval(lookup); holds != (b.Refusal(lookup) == "") {
			t.Fatalf("%q holds: %v, refusal %q", text, holds, b.Refusal(lookup))
		}
		negated, err := ParseBool("!(" + text + ")")
		if err == nil && negated.Eval(lookup) == b.Eval(lookup) {
			t.Fatalf("%q and its negation are both %v", text, b.Eval(lookup))
		}
	})
}

func FuzzParseRank(f *testing.F) {
	for _, s := range []string{"", "A", "FREE_CPU * 100 - RUNNING_VMS", "-(1 / \"A/B\") + .5", "1/0", "((((1"} {
		f.Add(s, 1.5)
	}
	f.Fuzz(func(t *testing.T, text string, value float64) {
		r, err := ParseRank(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if got := r.Eval(func(string) (float64, bool) { return value, true }); math.IsNaN(got) || math.IsInf(got, 0) {
			t.Fatalf("%q = %g", text, got)
		}
	})
}
