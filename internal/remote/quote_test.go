package remote

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// FuzzQuote: what a shell makes of a quoted word is the word.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a b", "it's", "'", "''", `\`, "$(id)", "`id`", "a\nb", "*", "~", "-n", "!x", "\xff\xfe", "ü", ";", "&&", `"`, "a'\\''b", "\r\n\t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text, err := line(command.Cmd{Name: "printf", Args: []string{"%s.%s", s, s}})
		if strings.Contains(s, "\x00") {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("/bin/sh", "-c", text).Output()
		if err != nil || !bytes.Equal(out, []byte(s+"."+s)) {
			t.Errorf("%q became %q, %v", s, out, err)
		}
	})
}

func TestLine(t *testing.T) {
	for _, row := range []struct {
		cmd  command.Cmd
		want string
	}{
		{command.Cmd{Name: "ls"}, "exec 'ls'"},
		{command.Cmd{Name: "ls", Args: []string{"-l", "it's"}, Dir: "/a b", Env: []string{"LC_ALL=C", "X=1 2"}}, `cd '/a b' && exec env 'LC_ALL=C' 'X=1 2' 'ls' '-l' 'it'\''s'`},
		{command.Cmd{}, ""},
		{command.Cmd{Name: "A=b"}, ""},
		{command.Cmd{Name: "a\x00"}, ""},
		{command.Cmd{Name: "ls", Dir: "a"}, ""},
		{command.Cmd{Name: "ls", Env: []string{"X"}}, ""},
		{command.Cmd{Name: "ls", Env: []string{"-i=1"}}, ""},
		{command.Cmd{Name: "ls", Env: []string{"=1"}}, ""},
	} {
		got, err := line(row.cmd)
		if got != row.want || (err == nil) == (row.want == "") || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %q, %v", row.cmd, got, err)
		}
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"h": "@h:22", "u@h": "u@h:22", "u@h:2222": "u@h:2222", "u@[::1]:23": "u@[::1]:23", "[::1]": "@[::1]:22", "::1": "@[::1]:22",
		"u@d@h": "", "": "", "@h": "", "u@": "", "h:0": "", "h:x": "", "h:70000": "", "-oProxy@h": "", "-h": "", "a b": "", "h\n": "", "a:b:c": "",
	} {
		a, err := parseAddress(in)
		if err == nil && a.String() != want || err != nil && (want != "" || !fault.Is(err, fault.Invalid)) {
			t.Errorf("%q: %v, %v", in, a, err)
		}
	}
}

func TestFromOptions(t *testing.T) {
	for _, row := range []struct{ host, port, want string }{
		{"h", "", "h"}, {"u@h", "2222", "u@h:2222"}, {"u@::1", "23", "u@[::1]:23"}, {"h:5", "5", "h:5"}, {"h:5", "6", ""}, {"h", "x", ""}, {"", "1", ""},
	} {
		c, err := FromOptions(map[string]string{"HOST": row.host, "PORT": row.port, "KEY_FILE": "k", "KNOWN_HOSTS_FILE": "n"})
		if err == nil && (c.Address != row.want || c.KeyFile != "k" || c.KnownHostsFile != "n") || err != nil && (row.want != "" || !fault.Is(err, fault.Invalid)) {
			t.Errorf("%+v: %+v, %v", row, c, err)
		}
	}
}
