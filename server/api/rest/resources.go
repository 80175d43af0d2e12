package rest

import (
	"context"
	"net/http"

	"hayloft/cloud"
	"hayloft/cloud/template"
	"hayloft/server/api"
)

// route registers a handler.
type route func(pattern string, h handler)

// one makes a handler for a path with a REF.
func one(ref func(string) (int, error), do func(r *http.Request, id int) (any, error)) handler {
	return func(r *http.Request) (any, error) {
		id, err := ref(r.PathValue("ref"))
		if err != nil {
			return nil, err
		}
		return do(r, id)
	}
}

// show makes a handler for GET of one object.
func show[T, V any](ref func(string) (int, error), get func(int) (T, error), view func(T) V) handler {
	return one(ref, func(_ *http.Request, id int) (any, error) { return viewed(get, view, id) })
}

// drop makes a handler for DELETE of one object.
func drop(ref func(string) (int, error), do func(r *http.Request, id int) error) handler {
	return one(ref, func(r *http.Request, id int) (any, error) { return nil, do(r, id) })
}

func (s *Server) resources(handle route) {
	handle("GET /v1/hosts", func(*http.Request) (any, error) { return views(s.Inv.AllHosts(), s.hostView), nil })
	handle("GET /v1/hosts/{ref}", show(s.hostRef, s.Inv.Host, s.hostDetail))
	handle("POST /v1/hosts", s.createHost)
	handle("PUT /v1/hosts/{ref}", one(s.hostRef, updated(s.Ops.UpdateHost)))
	handle("DELETE /v1/hosts/{ref}", drop(s.hostRef, func(r *http.Request, id int) error { return s.Ops.DeleteHost(r.Context(), id) }))
	handle("POST /v1/hosts/{ref}/status", one(s.hostRef, s.hostStatus))
	handle("POST /v1/hosts/{ref}/token", one(s.hostRef, s.hostToken))

	handle("GET /v1/clusters", func(*http.Request) (any, error) { return views(s.Inv.AllClusters(), s.clusterView), nil })
	handle("GET /v1/clusters/{ref}", show(s.clusterRef, s.Inv.Cluster, s.clusterView))
	handle("POST /v1/clusters", s.made(func(ctx context.Context, t template.Template, _ api.Create, _ int) (int, error) {
		name, _ := t.Get("NAME")
		return s.Ops.CreateCluster(ctx, name)
	}))
	handle("DELETE /v1/clusters/{ref}", drop(s.clusterRef, func(r *http.Request, id int) error { return s.Ops.DeleteCluster(r.Context(), id) }))

	handle("GET /v1/datastores", func(*http.Request) (any, error) { return views(s.Inv.AllDatastores(), s.datastoreView), nil })
	handle("GET /v1/datastores/{ref}", one(s.datastoreRef, s.datastoreDetail))
	handle("POST /v1/datastores", s.made(func(ctx context.Context, t template.Template, _ api.Create, cluster int) (int, error) {
		return s.Ops.CreateDatastore(ctx, t, cluster)
	}))
	handle("PUT /v1/datastores/{ref}", one(s.datastoreRef, updated(s.Ops.UpdateDatastore)))
	handle("DELETE /v1/datastores/{ref}", drop(s.datastoreRef, func(r *http.Request, id int) error { return s.Ops.DeleteDatastore(r.Context(), id) }))

	handle("GET /v1/images", s.listImages)
	handle("GET /v1/images/{ref}", one(s.imageRef, s.imageDetail))
	handle("POST /v1/images", s.made(s.createImage))
	handle("DELETE /v1/images/{ref}", drop(s.imageRef, func(r *http.Request, id int) error { return s.Ops.DeleteImage(r.Context(), id) }))
	handle("PUT /v1/images/{ref}", one(s.imageRef, updated(s.Ops.UpdateImage)))
	handle("POST /v1/images/{ref}/persistent", one(s.imageRef, s.persistent))
	handle("POST /v1/images/{ref}/prefetch", one(s.imageRef, s.prefetch))
	handle("POST /v1/images/{ref}/release", one(s.imageRef, s.release))
	handle("POST /v1/images/{ref}/clone", one(s.imageRef, s.cloneImage))
	handle("POST /v1/images/{ref}/flatten", one(s.imageRef, func(r *http.Request, id int) (any, error) { return nil, s.Ops.FlattenImage(r.Context(), id) }))

	handle("GET /v1/templates", func(*http.Request) (any, error) { return views(s.Inv.AllTemplates(), templateView), nil })
	handle("GET /v1/templates/{ref}", show(s.templateRef, s.Inv.Template, templateView))
	handle("POST /v1/templates", s.made(func(ctx context.Context, t template.Template, _ api.Create, _ int) (int, error) {
		return s.Ops.CreateTemplate(ctx, t)
	}))
	handle("PUT /v1/templates/{ref}", one(s.templateRef, updated(s.Ops.UpdateTemplate)))
	handle("DELETE /v1/templates/{ref}", drop(s.templateRef, func(r *http.Request, id int) error { return s.Ops.DeleteTemplate(r.Context(), id) }))

	handle("GET /v1/networks", func(*http.Request) (any, error) { return views(s.Inv.AllNetworks(), s.networkView), nil })
	handle("GET /v1/networks/{ref}", show(s.networkRef, s.Inv.Network, s.networkView))
	handle("POST /v1/networks", s.made(func(ctx context.Context, t template.Template, _ api.Create, cluster int) (int, error) {
		return s.Ops.CreateNetwork(ctx, t, cluster)
	}))
	handle("DELETE /v1/networks/{ref}", drop(s.networkRef, func(r *http.Request, id int) error { return s.Ops.DeleteNetwork(r.Context(), id) }))
}

func (s *Server) listImages(*http.Request) (any, error) {
	users := s.imageUsers()
	return views(s.Inv.AllImages(), func(i cloud.Image) api.Image { return s.imageView(i, users[i.ID]) }), nil
}

func (s *Server) createHost(r *http.Request) (any, error) {
	body, err := decode[api.CreateHost](r)
	if err != nil {
		return nil, err
	}
	cluster, err := s.clusterRef(body.Cluster)
	if err != nil {
		return nil, err
	}
	id, err := s.Ops.CreateHost(r.Context(), body.Name, cluster)
	if err != nil {
		return nil, err
	}
	return s.hostToken(r, id)
}

func (s *Server) hostToken(r *http.Request, id int) (any, error) {
	h, err := s.Inv.Host(id)
	if err != nil {
		return nil, err
	}
	token, err := s.Fleet.NewToken(r.Context(), h.Name)
	return api.CreatedHost{ID: id, Token: token}, err
}

func (s *Server) hostStatus(r *http.Request, id int) (any, error) {
	body, err := decode[api.HostStatus](r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.EnableHost(r.Context(), id, body.Status)
}

// made makes a handler that creates an object from a template.
func (s *Server) made(create func(ctx context.Context, t template.Template, body api.Create, cluster int) (int, error)) handler {
	return func(r *http.Request) (any, error) {
		body, err := decode[api.Create](r)
		if err != nil {
			return nil, err
		}
		t, err := template.Parse(body.Template)
		if err != nil {
			return nil, err
		}
		cluster, err := s.clusterRef(body.Cluster)
		if err != nil {
			return nil, err
		}
		id, err := create(r.Context(), t, body, cluster)
		return api.Created{ID: id}, err
	}
}

// updated makes a handler that replaces an object's template, or merges into it.
func updated(update func(ctx context.Context, id int, t template.Template, merge bool) error) func(r *http.Request, id int) (any, error) {
	return func(r *http.Request, id int) (any, error) {
		body, err := decode[api.Update](r)
		if err != nil {
			return nil, err
		}
		t, err := template.Parse(body.Template)
		if err != nil {
			return nil, err
		}
		return nil, update(r.Context(), id, t, body.Merge)
	}
}

func (s *Server) createImage(ctx context.Context, t template.Template, body api.Create, _ int) (int, error) {
	datastore := -1 // by the type of the image
	if body.Datastore != "" {
		var err error
		if datastore, err = s.datastoreRef(body.Datastore); err != nil {
			return 0, err
		}
	}
	return s.Ops.CreateImage(ctx, t, datastore)
}

func (s *Server) persistent(r *http.Request, id int) (any, error) {
	body, err := decode[api.Persistent](r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.SetPersistent(r.Context(), id, body.Persistent)
}
