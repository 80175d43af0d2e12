package qemublock

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
)

// monitor speaks QMP with the child, one command at a time.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	in   *json.Decoder
}

// message is anything that QEMU sends.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *refusal        `json:"error"`
	Event  string          `json:"event"`
}

// refusal is QEMU's error.
type refusal struct {
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (r *refusal) Error() string { return strings.TrimSpace(r.Description) }

func newMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn}
	m.in = json.NewDecoder(conn)
	stop := m.bound(ctx)
	defer stop()
	greeting, err := m.receive()
	if err != nil {
		return nil, err
	}
	if greeting.QMP == nil {
		return nil, fault.Errorf(fault.Internal, "QEMU does not greet")
	}
	return m, m.execute("qmp_capabilities", nil, nil)
}

// bound ends what waits for the connection when ctx ends.
func (m *monitor) bound(ctx context.Context) (stop func()) {
	_ = m.conn.SetDeadline(time.Time{})
	ended := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = m.conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !end() {
			<-ended // or it would end the next command
		}
	}
}

func (m *monitor) receive() (message, error) {
	var r message
	if err := m.in.Decode(&r); err != nil {
		return r, fault.Errorf(fault.Unavailable, "%s: its monitor: %w", program, err)
	}
	return r, nil
}

// run executes a command and, when after is not "", waits for the event that follows it. result may be nil.
func (m *monitor) run(ctx context.Context, command string, arguments, result any, after ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.bound(ctx)()
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.execute(command, arguments, result, after...)
}

func (m *monitor) execute(command string, arguments, result any, after ...string) error {
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(text, '\n')); err != nil {
		return fault.Errorf(fault.Unavailable, "%s: its monitor: %w", program, err)
	}
	answered := false
	for !answered || len(after) > 0 {
		r, err := m.receive()
		switch {
		case err != nil:
			return err
		case r.Event != "" && len(after) > 0 && r.Event == after[0]:
			after = after[1:]
		case r.Event != "":
		case r.Error != nil:
			return r.Error
		case r.Return != nil:
			answered = true
			if result != nil {
				if err := json.Unmarshal(r.Return, result); err != nil {
					return fault.Errorf(fault.Internal, "%s: %w", command, err)
				}
			}
		}
	}
	return nil
}
