package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"syscall"

	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// largestError bounds what is read of an error's body, bytes.
const largestError = 64 << 10

// unreachable gives an error of the transport its class, and a hint where there is one.
func (c *Client) unreachable(err error) error {
	var known *unreachableError
	switch {
	case errors.As(err, &known):
		return known.error
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fault.Errorf(fault.Unavailable, "server at %s: %w", c.endpoint, err)
	case c.socket != "" && errors.Is(err, fs.ErrNotExist):
		err = fault.Errorf(fault.Unavailable, "no server: is \"hayloft up\" running? There is no socket at %s", c.socket)
	case c.socket != "" && errors.Is(err, syscall.ECONNREFUSED):
		err = fault.Errorf(fault.Unavailable, "no server: is \"hayloft up\" running? Nothing listens on %s", c.socket)
	case c.socket != "" && errors.Is(err, fs.ErrPermission):
		err = fault.Errorf(fault.Permission, "server: no permission to use %s: run as root, or as a user that may write to the socket", c.socket)
	case fault.Is(err, fault.Permission):
		err = fault.Errorf(fault.Permission, "server at %s: %w", c.endpoint, err)
	default:
		err = fault.Errorf(fault.Unavailable, "server at %s cannot be reached: %w", c.endpoint, err)
	}
	return &unreachableError{err}
}

// unreachableError marks what dial has classified already, below the layers that net/http adds.
type unreachableError struct{ error }

func (e *unreachableError) Unwrap() error { return e.error }

// refused reads the error in a response that is not a success.
func refused(response *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(response.Body, largestError))
	if err != nil {
		return fault.Errorf(fault.Unavailable, "server answered %s, and then: %w", response.Status, err)
	}
	var answer api.Error
	if json.Unmarshal(body, &answer) == nil && answer.Error.Message != "" {
		return fault.Errorf(fault.ParseClass(answer.Error.Class), "%s", answer.Error.Message)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return fault.Errorf(statusClass(response.StatusCode), "server answered %s: %s", response.Status, line)
}

// statusClass is for answers that are not of the interface, such as a proxy's.
func statusClass(status int) fault.Class {
	switch status {
	case http.StatusNotFound:
		return fault.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Permission
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return fault.Unsupported
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fault.Unavailable
	case http.StatusBadRequest:
		return fault.Invalid
	}
	return fault.Internal
}
