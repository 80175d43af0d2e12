package blockd

import (
	"encoding/json"
	"errors"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
)

// Protocol is the version of what Serve and Client say to each other. It changes when one of them would misunderstand
// the other; both refuse then (fault.Unsupported).
const Protocol = 1

const (
	protocolHeader = "Hayloft-Blockd-Protocol"
	callPath       = "/call/" // POST, the method's name and its arguments in JSON; the answer is a stream of reply
	holdPath       = "/hold"  // GET: who it is, then nothing until it ends
	endPath        = "/end"   // POST: end gracefully
)

// SocketFile is the socket of a daemon's process in its state directory.
const SocketFile = "blockd.sock"

// Hello is who answers.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	PID      int    `json:"pid"`
}

// call is the arguments of any method.
type call struct {
	Base    *BaseSpec `json:"base,omitempty"`
	Preload *Preload  `json:"preload,omitempty"`
	Export  *Export   `json:"export,omitempty"`
	Name    string    `json:"name,omitempty"` // of an export, or a digest
}

// reply is one line of an answer. The last one has Done.
type reply struct {
	Progress *progress         `json:"progress,omitempty"`
	Waiting  string            `json:"waiting,omitempty"` // what the call waits for, when that takes long
	Done     bool              `json:"done,omitempty"`
	Error    *wireError        `json:"error,omitempty"`
	Base     *cache.BaseStatus `json:"base,omitempty"`
	Status   *Status           `json:"status,omitempty"`
}

type progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

type wireError struct {
	Class string `json:"class"`
	Text  string `json:"text"`
	// Ending says that the process is: nothing was wrong with the call.
	Ending bool `json:"ending,omitempty"`
}

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	return &wireError{fault.ClassOf(err).String(), err.Error(), errors.Is(err, errEnding)}
}

func (e *wireError) err() error {
	if e == nil {
		return nil
	}
	if e.Ending { // whatever it met while it ended
		return fault.Errorf(fault.Unavailable, "blockd is ending: %s", e.Text)
	}
	return fault.Errorf(fault.ParseClass(e.Class), "%s", e.Text)
}

func encode(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil { // none of the types here can fail
		text = []byte(`{"done":true,"error":{"class":"internal","text":"answer cannot be encoded"}}`)
	}
	return append(text, '\n')
}
