package rest

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/operation"
)

// imageDetail is an image with what its repository says about who owns it.
func (s *Server) imageDetail(r *http.Request, id int) (any, error) {
	return viewed(s.Inv.Image, func(i cloud.Image) api.Image {
		view := s.imageView(i, s.Ops.ImageUsers(id))
		if i.Persistent && i.State == cloud.ImageStateReady {
			view.Owner = s.owner(r.Context(), &i)
		}
		return view
	}, id)
}

func (s *Server) owner(ctx context.Context, img *cloud.Image) *api.Owner {
	mark, err := s.Ops.ImageMark(ctx, img)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return &api.Owner{Machine: -1, Error: err.Error()}
	}
	return &api.Owner{Host: mark.Host, Machine: mark.Machine, Generation: mark.Generation, Undrained: mark.Undrained}
}

func (s *Server) prefetch(r *http.Request, id int) (any, error) {
	body, err := decode[api.Prefetch](r)
	if err != nil {
		return nil, err
	}
	var hosts []int
	for _, ref := range body.Hosts {
		host, err := s.hostRef(ref)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, host)
	}
	switch {
	case body.All == (len(hosts) > 0):
		return nil, fault.Errorf(fault.Invalid, "prefetch: want hosts, or all of them")
	case body.Cancel:
		return nil, s.Ops.CancelPrefetch(r.Context(), id, hosts)
	}
	for _, h := range s.Inv.AllHosts() {
		if body.All && h.State == cloud.HostStateMonitored && h.Session != "" {
			hosts = append(hosts, h.ID)
		}
	}
	return nil, s.Ops.Prefetch(r.Context(), id, hosts, body.Rate)
}

func (s *Server) release(r *http.Request, id int) (any, error) {
	body, err := decode[api.Release](r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.ReleaseImage(r.Context(), id, body.AcceptStale)
}

func (s *Server) cloneImage(r *http.Request, id int) (any, error) {
	body, err := decode[api.CloneImage](r)
	if err != nil {
		return nil, err
	}
	c := operation.CloneImage{Name: body.Name, Datastore: -1, Persistent: body.Persistent}
	if body.Datastore != "" {
		if c.Datastore, err = s.datastoreRef(body.Datastore); err != nil {
			return nil, err
		}
	}
	clone, err := s.Ops.CloneImage(r.Context(), id, c)
	return api.Created{ID: clone}, err
}

// hostDetail is a host with the images it has.
func (s *Server) hostDetail(h cloud.Host) api.Host {
	view := s.hostView(h)
	for _, digest := range h.Bases {
		view.Held = append(view.Held, api.Held{Digest: digest, Complete: true})
	}
	for _, p := range h.Partial {
		view.Held = append(view.Held, api.Held{Digest: p.Digest, Present: p.Present, Total: p.Total})
	}
	at := map[string]int{}
	for i := range view.Held {
		view.Held[i].Images = []int{}
		at[view.Held[i].Digest] = i
	}
	for _, img := range s.Inv.AllImages() {
		i, ok := at[img.Digest]
		if !ok || img.Digest == "" {
			continue
		}
		held := &view.Held[i]
		held.Images = append(held.Images, img.ID)
		held.Names = strings.TrimPrefix(held.Names+", "+img.Name, ", ")
		if held.Complete {
			held.Present, held.Total = img.ObjectSize, img.ObjectSize
		}
	}
	slices.SortFunc(view.Held, func(a, b api.Held) int { return strings.Compare(a.Names+a.Digest, b.Names+b.Digest) })
	return view
}
