package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// Watch yields every object of the kinds there is, then an event with Synced, then each change, until ctx
// ends or the loop is left. An error is yielded once, at the end: ctx's own, or fault.Unavailable when the
// server went away. Without kinds it watches all of them.
func (c *Client) Watch(ctx context.Context, kinds ...string) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		response, err := c.send(ctx, http.MethodGet, "/v1/watch", url.Values{"kind": kinds}, nil)
		if err != nil {
			yield(api.Event{}, err)
			return
		}
		defer response.Body.Close()
		lines := json.NewDecoder(response.Body)
		for {
			var event api.Event
			if err := lines.Decode(&event); err != nil {
				yield(api.Event{}, c.watchEnded(ctx, err))
				return
			}
			if !yield(event, nil) {
				return
			}
		}
	}
}

func (c *Client) watchEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		return fault.Errorf(fault.Unavailable, "server at %s ended the watch", c.endpoint)
	}
	return fault.Errorf(fault.Unavailable, "server at %s: watch: %w", c.endpoint, err)
}

// Object reads the object of an event.
func Object[T any](event api.Event) (T, error) {
	var object T
	if err := json.Unmarshal(event.Object, &object); err != nil {
		return object, fault.Errorf(fault.Internal, "watch: %s %s: %w", event.Kind, strconv.Itoa(event.ID), err)
	}
	return object, nil
}
