package contextdisk

import "strings"

// substitute replaces $NAME, $VMID, $UID, $GID, $UNAME and $GNAME, and $NIC[A, KEY="v"], $NETWORK[A, KEY="v"],
// $TEMPLATE[A] and $USER[A] (of the first NIC or network that fits; nothing when there is none). Every other
// dollar sign stays as it is, so that scripts keep their own variables. What was put in is not looked at again.
func (in Input) substitute(text string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		size := 0
		for size < len(after) && isShellName(after[:size+1]) {
			size++
		}
		name, rest := after[:size], after[size:]
		if value, tail, ok := in.indexed(name, rest); ok {
			b.WriteString(value)
			text = tail
			continue
		}
		if value, ok := in.single(name); ok {
			b.WriteString(value)
		} else {
			b.WriteString("$" + name)
		}
		text = rest
	}
}

// indexed reads NOUN[ATTRIBUTE, KEY=VALUE, ...]. tail is what follows.
func (in Input) indexed(noun, rest string) (value, tail string, ok bool) {
	switch noun {
	case "NIC", "NETWORK", "TEMPLATE", "USER":
	default:
		return "", "", false
	}
	if !strings.HasPrefix(rest, "[") {
		return "", "", false
	}
	parts, tail, ok := splitIndex(rest[1:])
	if !ok {
		return "", "", false
	}
	attribute := strings.ToUpper(strings.TrimSpace(parts[0]))
	if !isShellName(attribute) {
		return "", "", false
	}
	switch noun {
	case "TEMPLATE":
		return in.Template[attribute], tail, true
	case "USER":
		return in.User[attribute], tail, true
	}
	for _, nic := range in.NICs {
		attributes := nic.attributesOf(noun)
		if fits(attributes, parts[1:]) {
			return attributes[attribute], tail, true
		}
	}
	return "", tail, true
}

func fits(attributes map[string]string, conditions []string) bool {
	for _, condition := range conditions {
		key, want, _ := strings.Cut(condition, "=")
		want = strings.TrimSpace(want)
		if len(want) >= 2 && want[0] == '"' && want[len(want)-1] == '"' {
			want = want[1 : len(want)-1]
		}
		if attributes[strings.ToUpper(strings.TrimSpace(key))] != want {
			return false
		}
	}
	return true
}

// splitIndex splits at commas up to the closing bracket; both may stand inside double quotes.
func splitIndex(text string) (parts []string, tail string, ok bool) {
	start, quoted := 0, false
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ',':
			parts = append(parts, text[start:i])
			start = i + 1
		case c == ']':
			return append(parts, text[start:i]), text[i+1:], true
		}
	}
	return nil, "", false
}
