package qmp

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Error is a command that QEMU refused.
type Error struct {
	Command     string
	Class       string // GenericError, CommandNotFound, DeviceNotFound, ...
	Description string // QEMU's own words
}

func (e *Error) Error() string { return "qmp " + e.Command + ": " + e.Description }

// Event is what QEMU says unasked.
type Event struct {
	Name string // SHUTDOWN, STOP, ...
	Time time.Time
	Data json.RawMessage // may be nil
}

// EventsLost is the name of the event that stands for those dropped because nobody fetched them: whoever
// sees it asks for the state anew.
const EventsLost = "HAYLOFT_EVENTS_LOST"

// Version is QEMU's version from its greeting.
type Version struct {
	Major, Minor, Micro int
	Package             string
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// message is any line that QEMU sends: a greeting, a reply or an event.
type message struct {
	Greeting *greeting       `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Failure  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

type greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	} `json:"version"`
}

var errNoMessage = errors.New("neither greeting, reply nor event")

// decode reads one line (QEMU's docs/interop/qmp-spec.txt).
func decode(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("qmp: bad message: %w", err)
	}
	if m.Greeting == nil && m.Return == nil && m.Failure == nil && m.Event == "" {
		return message{}, fmt.Errorf("qmp: bad message: %w", errNoMessage)
	}
	return m, nil
}

// answer is a reply as the outcome of command: a refusal is an *Error; what it returns is unmarshalled into out (may be nil).
func (m message) answer(command string, out any) error {
	if m.Failure != nil {
		return &Error{Command: command, Class: m.Failure.Class, Description: m.Failure.Desc}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("qmp %s: answer: %w", command, err)
	}
	return nil
}

func (m message) event() Event {
	e := Event{Name: m.Event, Data: m.Data}
	if m.Timestamp.Seconds > 0 { // -1 when QEMU's clock failed
		e.Time = time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
	}
	return e
}
