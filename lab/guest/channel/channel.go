// Package channel is what the outside and the inside of a kernel guest say to each other over one serial port: frames
// that carry requests to run programs and to write files, and what comes back, several at a time.
package channel

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// PortName is the name of the virtio serial port in the guest.
const PortName = "hayloft"

// Kind tells what a frame carries.
type Kind byte

// Requests come from the outside with a number of their own; answers carry the same number and end with Exit.
const (
	Run      Kind = iota + 1 // Command as JSON
	Put                      // File as JSON
	Kill                     // ends the program of that number, by SIGKILL
	Forward                  // Forwarding as JSON; never ends
	PowerOff                 // writes everything to the disks and powers off
	Ready                    // the guest is up
	Stdout                   // bytes of a program
	Stderr                   // bytes of a program
	Exit                     // Status as JSON
)

// Command is a program to run as root.
type Command struct {
	Name  string // looked up in PATH
	Args  []string
	Env   []string // added to the guest's own
	Dir   string
	Stdin []byte
}

// File is a part of a file to write.
type File struct {
	Path   string
	Mode   uint32 // permission bits
	Data   []byte
	Append bool // to what an earlier frame wrote
}

// Forwarding asks the guest to accept TCP connections at Listen and to carry them on to Dial.
type Forwarding struct {
	Listen, Dial string // host:port
}

// Status is how a request ended.
type Status struct {
	Exit  int    // of the program, -1 when a signal ended it
	Error string // why there is no exit status, empty otherwise
}

// Frame is one message.
type Frame struct {
	Kind    Kind
	Number  uint32
	Payload []byte
}

// MaxPayload is the most bytes of one frame.
const MaxPayload = 4 << 20

const header = 1 + 4 + 4

// Conn sends frames from several goroutines and receives them in one.
type Conn struct {
	mutex sync.Mutex
	port  io.ReadWriter
}

// New returns a Conn on a serial port or a socket.
func New(port io.ReadWriter) *Conn { return &Conn{port: port} }

// Send sends one frame.
func (c *Conn) Send(f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes, at most %d", len(f.Payload), MaxPayload)
	}
	data := make([]byte, header, header+len(f.Payload))
	data[0] = byte(f.Kind)
	binary.BigEndian.PutUint32(data[1:], f.Number)
	binary.BigEndian.PutUint32(data[5:], uint32(len(f.Payload)))
	data = append(data, f.Payload...)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	_, err := c.port.Write(data)
	return err
}

// SendJSON sends one frame with a value.
func (c *Conn) SendJSON(kind Kind, number uint32, value any) error {
	payload, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return c.Send(Frame{kind, number, payload})
}

// Receive returns the next frame.
func (c *Conn) Receive() (Frame, error) {
	var head [header]byte
	if _, err := io.ReadFull(c.port, head[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(head[5:])
	if size > MaxPayload {
		return Frame{}, fmt.Errorf("frame of %d bytes, at most %d", size, MaxPayload)
	}
	f := Frame{Kind(head[0]), binary.BigEndian.Uint32(head[1:]), make([]byte, size)}
	_, err := io.ReadFull(c.port, f.Payload)
	return f, err
}
