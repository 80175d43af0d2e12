package channel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"testing"
)

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	var wire bytes.Buffer
	c := New(&wire)
	want := Command{Name: "lvs", Args: []string{"-o", "a b"}, Env: []string{"X=1"}, Dir: "/", Stdin: []byte{0, 255}}
	if err := errors.Join(c.SendJSON(Run, 7, want), c.Send(Frame{Kind: Ready})); err != nil {
		t.Fatal(err)
	}
	f, err := c.Receive()
	if err != nil || f.Kind != Run || f.Number != 7 {
		t.Fatalf("frame %v, %v", f, err)
	}
	var got Command
	if err := json.Unmarshal(f.Payload, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("command %+v, %v", got, err)
	}
	if f, err := c.Receive(); err != nil || f.Kind != Ready || len(f.Payload) != 0 {
		t.Errorf("frame %v, %v", f, err)
	}
	if _, err := c.Receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestLongFramesAreRefused(t *testing.T) {
	var wire bytes.Buffer
	if err := New(&wire).Send(Frame{Payload: make([]byte, MaxPayload+1)}); err == nil || wire.Len() > 0 {
		t.Errorf("sent: %v", err)
	}
	head := binary.BigEndian.AppendUint32([]byte{byte(Run), 0, 0, 0, 1}, MaxPayload+1)
	wire.Write(head)
	if _, err := New(&wire).Receive(); err == nil {
		t.Error("received")
	}
}

// FuzzReceive finds frames that are taken and do not come back when sent again.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x07\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := New(bytes.NewBuffer(bytes.Clone(data))).Receive()
		if err != nil {
			return
		}
		var wire bytes.Buffer
		if err := New(&wire).Send(frame); err != nil || !bytes.HasPrefix(data, wire.Bytes()) {
			t.Errorf("%x sent again as %x, %v", data, wire.Bytes(), err)
		}
	})
}
