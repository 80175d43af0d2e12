package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"hayloft/lab/guest/channel"
)

// calls are the requests that the guest has not answered yet, by number.
type calls struct {
	mutex  sync.Mutex
	last   uint32
	open   map[uint32]*call
	failed error // all that come later fail at once
}

// call is one request. Its writers are used by the one goroutine that receives.
type call struct {
	number         uint32
	stdout, stderr io.Writer
	status         channel.Status
	err            error         // when there is no status
	done           chan struct{} // closed when status or err is there
}

func newCalls() *calls { return &calls{open: map[uint32]*call{}} }

func (c *calls) add(stdout, stderr io.Writer) (*call, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.failed != nil {
		return nil, c.failed
	}
	c.last++
	one := &call{number: c.last, stdout: stdout, stderr: stderr, done: make(chan struct{})}
	c.open[one.number] = one
	return one, nil
}

func (c *calls) deliver(f channel.Frame) {
	c.mutex.Lock()
	one := c.open[f.Number]
	if f.Kind == channel.Exit {
		delete(c.open, f.Number)
	}
	c.mutex.Unlock()
	if one == nil {
		return
	}
	switch f.Kind {
	case channel.Stdout:
		one.stdout.Write(f.Payload) // whose error is the writer's own matter
	case channel.Stderr:
		one.stderr.Write(f.Payload)
	case channel.Exit:
		if err := json.Unmarshal(f.Payload, &one.status); err != nil {
			one.err = fmt.Errorf("answer of the guest: %w", err)
		}
		close(one.done)
	}
}

// fail ends all calls.
func (c *calls) fail(err error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.failed = err
	for number, one := range c.open {
		one.err = err
		close(one.done)
		delete(c.open, number)
	}
}
