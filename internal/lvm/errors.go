package lvm

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
)

// Error is a tool that failed: what it said, without the noise, and what that means.
type Error struct {
	Tool    string
	Message string
	class   fault.Class
	passing bool // only in the way of somebody for a moment
	// needed and free extents, when it was space that lacked.
	needed, free int64
	extents      bool
}

func (e *Error) Error() string { return e.Tool + ": " + e.Message }

// Unwrap gives the class of the error to package fault.
func (e *Error) Unwrap() error { return fault.As(e.class, errClass) }

var errClass = fmt.Errorf("lvm")

// signs are what the tools say, with what it means. The first that matches counts.
var signs = []struct {
	text    string
	class   fault.Class
	passing bool
}{
	{"insufficient free space", fault.OutOfSpace, false},
	{"insufficient free extents", fault.OutOfSpace, false},
	{"insufficient suitable allocatable extents", fault.OutOfSpace, false},
	{"not enough free space", fault.OutOfSpace, false},
	{"no free extents", fault.OutOfSpace, false},
	{"free space in volume group", fault.OutOfSpace, false},
	{"already exists", fault.Exists, false},
	{"name has already been used", fault.Exists, false},
	{"can't get lock", fault.Busy, true},
	{"cannot get lock", fault.Busy, true},
	{"failed to lock", fault.Busy, true},
	{"lock failed", fault.Busy, true},
	{"lock start in progress", fault.Busy, true},
	{"resource temporarily unavailable", fault.Busy, true},
	{"in use", fault.Busy, false},
	{"is used by another device", fault.Busy, false},
	{"contains a filesystem", fault.Busy, false},
	{"can't remove open logical volume", fault.Busy, false},
	{"ioctl on", fault.Internal, true}, // of the device mapper, for a moment: it is told below from lasting trouble
	{"not found", fault.NotFound, false},
	{"failed to find", fault.NotFound, false},
	{"could not find", fault.NotFound, false},
	{"pvs are missing", fault.Unavailable, false},
	{"missing pv", fault.Unavailable, false},
	{"permission denied", fault.Permission, false},
	{"operation not permitted", fault.Permission, false},
	{"can't get exclusive access", fault.Busy, false},
	{"device or resource busy", fault.Busy, false},
	{"command not found", fault.Unsupported, false},
	{"device-mapper: failure to communicate with kernel", fault.Unsupported, false},
	{"driver/module in kernel", fault.Unsupported, false},
	{"no such file or directory", fault.NotFound, false},
}

// errClass and signs are constants of the language's making: nothing writes to them.

var noise = regexp.MustCompile(`(?i)^(warning: |file descriptor \d+ |rounding up size|using default stripesize|logical volume "?\S+"? (created|changed|successfully removed)|\d+ logical volume|thin pool volume with chunk size|for thin pool auto extension|consider pruning|\d+ existing signature|wiping )`)

var space = []*regexp.Regexp{ // needed, free or free, needed: named
	regexp.MustCompile(`(?i)insufficient free space: (?P<needed>\d+) extents needed, but only (?P<free>\d+) available`),
	regexp.MustCompile(`(?i)has insufficient free space \((?P<free>\d+) extents\): (?P<needed>\d+) required`),
	regexp.MustCompile(`(?i)insufficient suitable (?:\S+ )?allocatable extents for logical volume \S+ : (?P<needed>\d+) more required`),
}

// recognise makes an Error of what a tool said on its standard error.
func recognise(tool, stderr string, status int) *Error {
	var lines []string
	for _, l := range strings.Split(stderr, "\n") {
		if l = strings.TrimSpace(l); l != "" && !noise.MatchString(l) {
			lines = append(lines, l)
		}
	}
	e := &Error{Tool: tool, Message: strings.Join(lines, "; "), class: fault.Internal}
	if e.Message == "" {
		e.Message = fmt.Sprintf("exit status %d", status)
		if all := strings.Join(strings.Fields(stderr), " "); all != "" {
			e.Message += ": " + all
		}
	}
	text := strings.ToLower(e.Message)
	for _, s := range signs {
		if !strings.Contains(text, s.text) {
			continue
		}
		e.class, e.passing = s.class, s.passing
		if s.text == "ioctl on" {
			e.passing = strings.Contains(text, "device or resource busy")
			if !e.passing {
				continue
			}
			e.class = fault.Busy
		}
		break
	}
	for _, r := range space {
		if m := r.FindStringSubmatch(e.Message); m != nil {
			e.extents = true
			for i, name := range r.SubexpNames() {
				switch n, _ := strconv.ParseInt(m[i], 10, 64); name {
				case "needed":
					e.needed = n
				case "free":
					e.free = n
				}
			}
			break
		}
	}
	return e
}
