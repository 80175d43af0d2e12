package client

import (
	"context"
	"net/http"

	"hayloft/cloud"
	"hayloft/server/api"
)

// Version says what serves.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	var answer api.Version
	return answer, c.do(ctx, http.MethodGet, "/v1/version", nil, nil, &answer)
}

// Hosts lists the hosts.
func (c *Client) Hosts(ctx context.Context) ([]api.Host, error) {
	return List[api.Host](ctx, c, cloud.KindHost)
}

// Host is one host, by id or name.
func (c *Client) Host(ctx context.Context, ref string) (api.Host, error) {
	return Get[api.Host](ctx, c, cloud.KindHost, ref)
}

// CreateHost makes a host's record and a token for its agent to enroll with.
func (c *Client) CreateHost(ctx context.Context, name, cluster string) (api.CreatedHost, error) {
	var answer api.CreatedHost
	return answer, c.do(ctx, http.MethodPost, "/v1/hosts", nil, api.CreateHost{Name: name, Cluster: cluster}, &answer)
}

// HostToken makes a new token for a host's agent to enroll with.
func (c *Client) HostToken(ctx context.Context, ref string) (api.CreatedHost, error) {
	var answer api.CreatedHost
	return answer, c.object(ctx, http.MethodPost, cloud.KindHost, ref, "/token", nil, &answer)
}

// SetHostStatus sets whether new machines are placed on a host: enable, disable or offline.
func (c *Client) SetHostStatus(ctx context.Context, ref, status string) error {
	return c.object(ctx, http.MethodPost, cloud.KindHost, ref, "/status", api.HostStatus{Status: status}, nil)
}

// Images lists the images.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return List[api.Image](ctx, c, cloud.KindImage)
}

// Image is one image, by id or name.
func (c *Client) Image(ctx context.Context, ref string) (api.Image, error) {
	return Get[api.Image](ctx, c, cloud.KindImage, ref)
}

// CreateImage registers an image and returns at once; WaitImage waits for its content to be taken in.
// datastore, an id or name, may be empty.
func (c *Client) CreateImage(ctx context.Context, template, datastore string) (int, error) {
	return c.create(ctx, cloud.KindImage, api.Create{Template: template, Datastore: datastore})
}

// SetPersistent makes an unused image persistent, or not.
func (c *Client) SetPersistent(ctx context.Context, ref string, persistent bool) error {
	return c.object(ctx, http.MethodPost, cloud.KindImage, ref, "/persistent", api.Persistent{Persistent: persistent}, nil)
}

// Prefetch brings an image to hosts, or drops that wish. It does not wait: the image's Prefetches tell what came of it.
func (c *Client) Prefetch(ctx context.Context, ref string, prefetch api.Prefetch) error {
	return c.object(ctx, http.MethodPost, cloud.KindImage, ref, "/prefetch", prefetch, nil)
}

// ReleaseImage takes a persistent image from an owner that never comes back.
func (c *Client) ReleaseImage(ctx context.Context, ref string, acceptStale bool) error {
	return c.object(ctx, http.MethodPost, cloud.KindImage, ref, "/release", api.Release{AcceptStale: acceptStale}, nil)
}

// CloneImage makes an image with the content of another one and returns at once; WaitImage waits.
func (c *Client) CloneImage(ctx context.Context, ref string, clone api.CloneImage) (int, error) {
	var created api.Created
	err := c.object(ctx, http.MethodPost, cloud.KindImage, ref, "/clone", clone, &created)
	return created.ID, err
}

// FlattenImage begins to make a clone independent of its parent; the image's Flatten is true until it is.
func (c *Client) FlattenImage(ctx context.Context, ref string) error {
	return c.object(ctx, http.MethodPost, cloud.KindImage, ref, "/flatten", nil, nil)
}

// Datastores lists the datastores.
func (c *Client) Datastores(ctx context.Context) ([]api.Datastore, error) {
	return List[api.Datastore](ctx, c, cloud.KindDatastore)
}

// Datastore is one datastore, by id or name.
func (c *Client) Datastore(ctx context.Context, ref string) (api.Datastore, error) {
	return Get[api.Datastore](ctx, c, cloud.KindDatastore, ref)
}

// CreateDatastore makes a datastore. cluster, an id or name, may be empty.
func (c *Client) CreateDatastore(ctx context.Context, template, cluster string) (int, error) {
	return c.create(ctx, cloud.KindDatastore, api.Create{Template: template, Cluster: cluster})
}

// Templates lists the VM templates.
func (c *Client) Templates(ctx context.Context) ([]api.Template, error) {
	return List[api.Template](ctx, c, cloud.KindTemplate)
}

// Template is one VM template, by id or name.
func (c *Client) Template(ctx context.Context, ref string) (api.Template, error) {
	return Get[api.Template](ctx, c, cloud.KindTemplate, ref)
}

// CreateTemplate registers a VM template.
func (c *Client) CreateTemplate(ctx context.Context, template string) (int, error) {
	return c.create(ctx, cloud.KindTemplate, api.Create{Template: template})
}

// Networks lists the virtual networks.
func (c *Client) Networks(ctx context.Context) ([]api.Network, error) {
	return List[api.Network](ctx, c, cloud.KindNetwork)
}

// Network is one virtual network, by id or name.
func (c *Client) Network(ctx context.Context, ref string) (api.Network, error) {
	return Get[api.Network](ctx, c, cloud.KindNetwork, ref)
}

// CreateNetwork makes a virtual network. cluster, an id or name, may be empty.
func (c *Client) CreateNetwork(ctx context.Context, template, cluster string) (int, error) {
	return c.create(ctx, cloud.KindNetwork, api.Create{Template: template, Cluster: cluster})
}

// Clusters lists the clusters.
func (c *Client) Clusters(ctx context.Context) ([]api.Cluster, error) {
	return List[api.Cluster](ctx, c, cloud.KindCluster)
}

// Cluster is one cluster, by id or name.
func (c *Client) Cluster(ctx context.Context, ref string) (api.Cluster, error) {
	return Get[api.Cluster](ctx, c, cloud.KindCluster, ref)
}

// CreateCluster makes a cluster from a template of which only NAME counts.
func (c *Client) CreateCluster(ctx context.Context, template string) (int, error) {
	return c.create(ctx, cloud.KindCluster, api.Create{Template: template})
}
