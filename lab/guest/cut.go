package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"hayloft/internal/command"
)

// CutAfter runs a program in the guest, and cuts the power the given time after its output had that many lines: the
// program says by a line that something is durable. It returns all lines that came out, also those after the last
// counted one: what each of them says must be found true when the guest was booted again.
func (g *Guest) CutAfter(ctx context.Context, c command.Cmd, lines int, delay time.Duration) ([]string, Loss, error) {
	output := &counted{wanted: lines, reached: make(chan struct{})}
	var stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		exit, err := g.Stream(ctx, c, output, &stderr)
		if err == nil {
			err = &command.Error{Cmd: c, Status: exit, Stderr: stderr.String()}
		}
		ended <- err
	}()
	select {
	case <-output.reached:
	case err := <-ended:
		return output.lines(), Loss{}, fmt.Errorf("kernel guest: it ended before the power: %w", err)
	}
	select {
	case <-time.After(delay):
	case err := <-ended:
		return output.lines(), Loss{}, fmt.Errorf("kernel guest: it ended before the power: %w", err)
	}
	loss, err := g.PowerCut()
	<-ended // with an error, as it must
	return output.lines(), loss, errors.Join(err, ctx.Err())
}

// counted keeps output and tells when it has so many lines.
type counted struct {
	mutex   sync.Mutex
	data    []byte
	wanted  int
	reached chan struct{}
}

func (c *counted) Write(data []byte) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	before := bytes.Count(c.data, []byte("\n"))
	c.data = append(c.data, data...)
	if before < c.wanted && bytes.Count(c.data, []byte("\n")) >= c.wanted {
		close(c.reached)
	}
	return len(data), nil
}

// lines are those that are complete.
func (c *counted) lines() []string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	end := bytes.LastIndexByte(c.data, '\n')
	if end < 0 {
		return nil
	}
	return strings.Split(string(c.data[:end]), "\n")
}
