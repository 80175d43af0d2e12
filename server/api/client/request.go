package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// do sends a request with an optional body and reads the answer into answer, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body, answer any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	response, err := c.send(ctx, method, path, query, content)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if answer == nil {
		_, _ = io.Copy(io.Discard, response.Body) // so that the connection is used again
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fault.Errorf(fault.Unavailable, "server at %s: answer to %s %s: %w", c.endpoint, method, path, err)
	}
	return nil
}

// send returns a response that is a success, whose body the caller closes.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.url(path, query), body)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		return nil, refused(response)
	}
	return response, nil
}

// List asks for all objects of a kind, such as cloud.KindImage.
func List[T any](ctx context.Context, c *Client, kind string) ([]T, error) {
	return list[T](ctx, c, kind, nil)
}

func list[T any](ctx context.Context, c *Client, kind string, query url.Values) ([]T, error) {
	var answer api.List[T]
	err := c.do(ctx, http.MethodGet, "/v1/"+kind+"s", query, nil, &answer)
	return answer.Items, err
}

// Get asks for one object of a kind by id or name.
func Get[T any](ctx context.Context, c *Client, kind, ref string) (T, error) {
	var answer T
	path, err := objectPath(kind, ref)
	if err != nil {
		return answer, err
	}
	return answer, c.do(ctx, http.MethodGet, path, nil, nil, &answer)
}

func (c *Client) create(ctx context.Context, kind string, body api.Create) (int, error) {
	var answer api.Created
	err := c.do(ctx, http.MethodPost, "/v1/"+kind+"s", nil, body, &answer)
	return answer.ID, err
}

// Update replaces or merges an object's template, by id or name. Templates, hosts, images and datastores have one.
func (c *Client) Update(ctx context.Context, kind, ref string, update api.Update) error {
	return c.object(ctx, http.MethodPut, kind, ref, "", update, nil)
}

// Delete deletes an object other than a machine, by id or name.
func (c *Client) Delete(ctx context.Context, kind, ref string) error {
	return c.object(ctx, http.MethodDelete, kind, ref, "", nil, nil)
}

// object does something to a named object; below is the rest of the path, with its slash.
func (c *Client) object(ctx context.Context, method, kind, ref, below string, body, answer any) error {
	path, err := objectPath(kind, ref)
	if err != nil {
		return err
	}
	return c.do(ctx, method, path+below, nil, body, answer)
}

func objectPath(kind, ref string) (string, error) {
	switch ref {
	case "":
		return "", fault.Errorf(fault.Invalid, "%s: no id or name given", kind)
	case ".", "..": // no object has such a name, and in a path they mean something else
		return "", fault.Errorf(fault.NotFound, "%s %q does not exist", kind, ref)
	}
	return "/v1/" + kind + "s/" + url.PathEscape(ref), nil
}

func vmPath(id int) string { return "/v1/vms/" + strconv.Itoa(id) }
