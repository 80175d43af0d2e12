package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"hayloft/cloud"
	"hayloft/server/api"
)

// VMs lists the machines; all says whether those that are DONE are among them.
func (c *Client) VMs(ctx context.Context, all bool) ([]api.VM, error) {
	query := url.Values{}
	if all {
		query.Set("all", "1")
	}
	return list[api.VM](ctx, c, cloud.KindVM, query)
}

// VM is one machine.
func (c *Client) VM(ctx context.Context, id int) (api.VM, error) {
	return Get[api.VM](ctx, c, cloud.KindVM, strconv.Itoa(id))
}

// CreateVMs makes machines, all or none, and returns their ids.
func (c *Client) CreateVMs(ctx context.Context, create api.CreateVMs) ([]int, error) {
	var answer api.CreatedVMs
	err := c.do(ctx, http.MethodPost, "/v1/vms", nil, create, &answer)
	return answer.IDs, err
}

// Act asks for one of the actions of api.Action, such as poweroff-hard. It does not wait for its end.
func (c *Client) Act(ctx context.Context, id int, action string) error {
	return c.vm(ctx, id, "/action", api.Action{Action: action}, nil)
}

// Deploy puts a waiting machine on a host, an id or name. With enforce only if it fits there.
func (c *Client) Deploy(ctx context.Context, id int, host string, enforce bool) error {
	return c.vm(ctx, id, "/deploy", api.Deploy{Host: host, Enforce: enforce}, nil)
}

// Recover ends a step that hangs or has failed: failure, success, retry, delete, recreate or delete-db.
func (c *Client) Recover(ctx context.Context, id int, operation string) error {
	return c.vm(ctx, id, "/recover", api.Recover{Operation: operation}, nil)
}

// Resize changes what a machine takes.
func (c *Client) Resize(ctx context.Context, id int, resize api.Resize) error {
	return c.vm(ctx, id, "/resize", resize, nil)
}

// SaveAs begins to save a disk as a new image and returns the image's id.
func (c *Client) SaveAs(ctx context.Context, id, disk int, name string) (int, error) {
	var answer api.Created
	err := c.vm(ctx, id, "/disks/"+strconv.Itoa(disk)+"/saveas", api.SaveAs{Name: name}, &answer)
	return answer.ID, err
}

// SaveWhenDone has a disk saved as a new image when its machine is terminated; name "" takes that back.
func (c *Client) SaveWhenDone(ctx context.Context, id, disk int, name string) error {
	return c.vm(ctx, id, "/disks/"+strconv.Itoa(disk)+"/saveas", api.SaveAs{Name: name, WhenDone: true}, nil)
}

// SetDiskCache changes how a disk of a machine that is off is cached, from its next start on.
func (c *Client) SetDiskCache(ctx context.Context, id, disk int, change api.DiskCache) error {
	return c.vm(ctx, id, "/disks/"+strconv.Itoa(disk)+"/cache", change, nil)
}

func (c *Client) vm(ctx context.Context, id int, below string, body, answer any) error {
	return c.do(ctx, http.MethodPost, vmPath(id)+below, nil, body, answer)
}
