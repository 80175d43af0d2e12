package remote

import (
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// quote makes one word of s for a POSIX shell. s has no NUL.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// line is c as one command for the shell that SSH hands it to: a shell of the POSIX kind, which replaces itself by
// the program. fault.Invalid for what no program can be given.
func line(c command.Cmd) (string, error) {
	var b strings.Builder
	if c.Name == "" || strings.Contains(c.Name, "=") {
		return "", fault.Errorf(fault.Invalid, "program %q: not a name", c.Name)
	}
	if c.Dir != "" {
		if !strings.HasPrefix(c.Dir, "/") {
			return "", fault.Errorf(fault.Invalid, "program %s: directory %q is not absolute", c.Name, c.Dir)
		}
		b.WriteString("cd " + quote(c.Dir) + " && ")
	}
	b.WriteString("exec ")
	if len(c.Env) > 0 {
		b.WriteString("env")
		for _, e := range c.Env {
			if strings.IndexByte(e, '=') < 1 || e[0] == '-' {
				return "", fault.Errorf(fault.Invalid, "program %s: environment %q is not NAME=VALUE", c.Name, e)
			}
			b.WriteString(" " + quote(e))
		}
		b.WriteString(" ")
	}
	b.WriteString(quote(c.Name))
	for _, a := range c.Args {
		b.WriteString(" " + quote(a))
	}
	if s := b.String(); !strings.Contains(s, "\x00") {
		return s, nil
	}
	return "", fault.Errorf(fault.Invalid, "program %q: an argument with a NUL byte", c.Name)
}
