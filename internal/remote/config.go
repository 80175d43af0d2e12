// Package remote reaches other hosts over SSH: it runs programs there like command.Exec does here, and gives a client
// of their file system (SFTP) on the same connection.
//
// Connections are made when needed, shared, watched with keepalives, made anew after a loss, and end when they
// have been idle for a while. A host's key is always checked; who we are is shown with a key, never with a password.
package remote

import (
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

// Config says how a host is reached. The zero value of all but Address is ready.
type Config struct {
	Address        string // [user@]host[:port]; the user defaults to that of this process, the port to 22
	KeyFile        string // a private key, readable by its owner alone; "": the agent (SSH_AUTH_SOCK), then the user's default keys
	KnownHostsFile string // "": the user's ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts

	ConnectLimit time.Duration // for connecting and logging in; 0: 15 s
	AnswerLimit  time.Duration // for opening a session, SFTP, or starting a program; 0: 60 s
	KeepAlive    time.Duration // between two questions whether the host is there; 0: 5 s
	DeadAfter    time.Duration // without an answer the connection is given up; 0: 15 s
	Idle         time.Duration // after which an unused connection ends; 0: 30 s
}

// FromOptions reads a datastore's attributes: HOST, PORT, KEY_FILE, KNOWN_HOSTS_FILE. Errors are fault.Invalid.
func FromOptions(options map[string]string) (Config, error) {
	c := Config{Address: options["HOST"], KeyFile: options["KEY_FILE"], KnownHostsFile: options["KNOWN_HOSTS_FILE"]}
	if port := options["PORT"]; port != "" {
		a, err := parseAddress(c.Address)
		switch {
		case err != nil:
			return c, err
		case a.portGiven && a.port != port:
			return c, fault.Errorf(fault.Invalid, "HOST %q and PORT %q name two ports", c.Address, port)
		case !isPort(port):
			return c, fault.Errorf(fault.Invalid, "PORT %q is not a port", port)
		case !a.portGiven:
			prefix := ""
			if a.user != "" {
				prefix = a.user + "@"
			}
			c.Address = prefix + net.JoinHostPort(a.host, port)
		}
	}
	return c, nil
}

// address is where a host is reached, and as whom.
type address struct {
	user, host, port string
	portGiven        bool
}

func (a address) dial() string   { return net.JoinHostPort(a.host, a.port) }
func (a address) String() string { return a.user + "@" + a.dial() }

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// parseAddress takes [user@]host[:port] apart; hosts that are IPv6 addresses with a port are in brackets.
func parseAddress(s string) (address, error) {
	a := address{port: "22"}
	bad := func(why string) (address, error) {
		return a, fault.Errorf(fault.Invalid, "HOST %q is not [user@]host[:port]: %s", s, why)
	}
	rest := s
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		a.user, rest = s[:i], s[i+1:]
		if a.user == "" {
			return bad("empty user")
		}
	}
	a.host = strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]")
	if host, port, err := net.SplitHostPort(rest); err == nil {
		a.host, a.port, a.portGiven = host, port, true
	}
	switch {
	case a.host == "":
		return bad("no host")
	case !isPort(a.port):
		return bad("bad port")
	case strings.HasPrefix(a.host, "-"), strings.HasPrefix(a.user, "-"):
		return bad("begins with a dash")
	case strings.Contains(a.host, ":") && net.ParseIP(strings.SplitN(a.host, "%", 2)[0]) == nil:
		return bad("bad port or IPv6 address")
	}
	for _, r := range a.user + a.host {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`'"\/[]@`, r) {
			return bad("a character that no host or user has")
		}
	}
	return a, nil
}

// withUser fills in the user of this process.
func (a address) withUser() (address, error) {
	if a.user != "" {
		return a, nil
	}
	u, err := user.Current()
	if err != nil {
		return a, fault.Errorf(fault.Invalid, "host %s: no user given, and this process has none: %w", a.host, err)
	}
	a.user = u.Username
	return a, nil
}

// home is the user's directory, "" when there is none.
func home() string {
	if u, err := user.Current(); err == nil && u.HomeDir != "" {
		return u.HomeDir
	}
	dir, _ := os.UserHomeDir()
	return dir
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{{&c.ConnectLimit, 15 * time.Second}, {&c.AnswerLimit, time.Minute}, {&c.KeepAlive, 5 * time.Second}, {&c.DeadAfter, 15 * time.Second}, {&c.Idle, 30 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	return c
}
