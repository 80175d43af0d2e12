package nfs

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

var serverName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)

// parseSource checks SERVER:/EXPORT and gives it as mount.nfs4 takes it.
func parseSource(text string) (string, error) {
	server, export, ok := strings.Cut(text, ":/")
	if !ok {
		return "", fmt.Errorf("BASE_PATH %q is not SERVER:/EXPORT", text)
	}
	if inner, ok := strings.CutPrefix(server, "["); ok {
		address, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !address.Is6() || !strings.HasSuffix(inner, "]") || strings.ContainsAny(address.Zone(), ", ") {
			return "", fmt.Errorf("BASE_PATH %q: server %q is no address", text, server)
		}
	} else if !serverName.MatchString(server) {
		return "", fmt.Errorf("BASE_PATH %q: server %q is no name or address", text, server)
	}
	export = strings.TrimRight(export, "/")
	for element := range strings.SplitSeq(export, "/") {
		if element == "" && export != "" || element == "." || element == ".." || strings.ContainsFunc(element, func(r rune) bool { return unicode.IsControl(r) || r == '\\' }) {
			return "", fmt.Errorf("BASE_PATH %q: export /%s", text, export)
		}
	}
	return server + ":/" + export, nil
}

// ours are options of every mount; those of a datastore come after them.
var ours = []string{"softerr", "timeo=100", "retrans=2", "lookupcache=positive", "noatime", "retry=0"}

// always are options that come last.
var always = []string{"nosuid", "nodev", "noexec"}

// allowed are the options that a datastore may have: words, and names with a value that has this form.
var allowed = map[string]*regexp.Regexp{
	"hard": nil, "softerr": nil, "rdma": nil, "noac": nil, "atime": nil, "noatime": nil, "relatime": nil, "fsc": nil, "nofsc": nil, "nosharecache": nil,
	"vers": version, "nfsvers": version, "minorversion": regexp.MustCompile(`^[0-2]$`),
	"proto": regexp.MustCompile(`^(tcp|tcp6|rdma|rdma6)$`), "port": number, "sec": regexp.MustCompile(`^(sys|krb5|krb5i|krb5p)$`),
	"timeo": number, "retrans": number, "rsize": number, "wsize": number, "nconnect": number, "max_connect": number,
	"acregmin": number, "acregmax": number, "acdirmin": number, "acdirmax": number, "actimeo": number,
	"lookupcache": regexp.MustCompile(`^(positive|pos|none)$`), "xprtsec": regexp.MustCompile(`^(none|tls|mtls)$`),
}

var (
	number  = regexp.MustCompile(`^[0-9]{1,8}$`)
	version = regexp.MustCompile(`^4(\.[0-2])?$`) // older ones have locks that outlive a host
)

// parseOptions gives all options of a mount.
func parseOptions(text string) ([]string, error) {
	options := slices.Clone(ours)
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		name, value, has := strings.Cut(word, "=")
		form, known := allowed[name]
		switch {
		case !known:
			return nil, fmt.Errorf("%q is not one of those that are allowed", name)
		case (form == nil) == has:
			return nil, fmt.Errorf("%q: a value for what has none, or none for what has one", word)
		case has && !form.MatchString(value):
			return nil, fmt.Errorf("%q: that value is not allowed", word)
		}
		options = append(options, word)
	}
	return append(options, always...), nil
}
