package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/inventory"
)

var kinds = []string{cloud.KindVM, cloud.KindHost, cloud.KindImage, cloud.KindDatastore, cloud.KindTemplate, cloud.KindNetwork,
	cloud.KindCluster}

// progressEvery is how often a watch repeats objects that have work under way: how far it is is not
// stored, so no change of a record tells of it.
const progressEvery = time.Second

// watch streams objects of the asked kinds as they change.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	wanted := r.URL.Query()["kind"]
	for _, kind := range wanted {
		if !slices.Contains(kinds, kind) {
			s.fail(w, r, fault.Errorf(fault.Invalid, "kind %q is none of %v", kind, kinds))
			return
		}
	}
	if len(wanted) == 0 {
		wanted = kinds
	}
	sub := s.Inv.Subscribe(func(c inventory.Change) bool { return slices.Contains(wanted, c.Kind) })
	defer sub.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w).Flush
	send := func(kind string, id int, view any) error {
		e := api.Event{Kind: kind, ID: id, Deleted: view == nil}
		if view != nil {
			form, err := json.Marshal(view)
			if err != nil {
				return err
			}
			e.Object = form
		}
		return out.Encode(e)
	}
	for _, kind := range wanted {
		for _, id := range s.ids(kind) {
			if view := s.object(kind, id); view != nil {
				if send(kind, id, view) != nil {
					return
				}
			}
		}
	}
	if out.Encode(api.Event{Synced: true}) != nil || flush() != nil {
		return
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		var changes []inventory.Change
		select {
		case <-r.Context().Done():
			return
		case <-sub.Wake():
			changes = sub.Take()
		case <-tick.C:
			changes = s.underWay(wanted)
		}
		for _, c := range changes {
			if send(c.Kind, c.ID, s.object(c.Kind, c.ID)) != nil {
				return
			}
		}
		if len(changes) > 0 && flush() != nil {
			return
		}
	}
}

// underWay are objects whose work is in progress.
func (s *Server) underWay(wanted []string) []inventory.Change {
	var changes []inventory.Change
	if slices.Contains(wanted, cloud.KindVM) {
		for _, row := range s.Inv.VMRows(func(vm *cloud.VM) bool {
			return vm.State == cloud.StateActive && vm.LCM.Transient() || vm.State == cloud.StatePoweroff // whose guest went off by itself: it may be draining
		}) {
			if s.Fleet.Live(row.ID).Step != "" {
				changes = append(changes, inventory.Change{Kind: cloud.KindVM, ID: row.ID})
			}
		}
	}
	if slices.Contains(wanted, cloud.KindImage) {
		for _, img := range s.Inv.AllImages() {
			if img.State == cloud.ImageStateLocked {
				changes = append(changes, inventory.Change{Kind: cloud.KindImage, ID: img.ID})
			}
		}
		last := -1
		for _, p := range s.Inv.Prefetches(func(p cloud.Prefetch) bool { return p.State == cloud.PrefetchWanted }) {
			if p.ImageID != last {
				changes = append(changes, inventory.Change{Kind: cloud.KindImage, ID: p.ImageID})
			}
			last = p.ImageID
		}
	}
	return changes
}

func (s *Server) ids(kind string) []int {
	var ids []int
	switch kind {
	case cloud.KindVM:
		for _, row := range s.Inv.VMRows(func(vm *cloud.VM) bool { return vm.State != cloud.StateDone }) {
			ids = append(ids, row.ID)
		}
	case cloud.KindHost:
		ids = idsOf(s.Inv.AllHosts(), func(h cloud.Host) int { return h.ID })
	case cloud.KindImage:
		ids = idsOf(s.Inv.AllImages(), func(i cloud.Image) int { return i.ID })
	case cloud.KindDatastore:
		ids = idsOf(s.Inv.AllDatastores(), func(d cloud.Datastore) int { return d.ID })
	case cloud.KindTemplate:
		ids = idsOf(s.Inv.AllTemplates(), func(t cloud.VMTemplate) int { return t.ID })
	case cloud.KindNetwork:
		ids = idsOf(s.Inv.AllNetworks(), func(n cloud.Network) int { return n.ID })
	case cloud.KindCluster:
		ids = idsOf(s.Inv.AllClusters(), func(c cloud.Cluster) int { return c.ID })
	}
	return ids
}

func idsOf[T any](all []T, id func(T) int) []int {
	ids := make([]int, len(all))
	for i, v := range all {
		ids[i] = id(v)
	}
	return ids
}

// tunnelPatience is how long an agent may take to open a tunnel.
const tunnelPatience = 15 * time.Second

// tunnel connects the caller with something of a machine, by way of its host.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request) {
	id, err := s.vmRef(r.PathValue("ref"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	kind := r.URL.Query().Get("kind")
	port, _ := strconv.Atoi(r.URL.Query().Get("port"))
	if kind == "tcp" && (port < 1 || port > 65535) {
		s.fail(w, r, fault.Errorf(fault.Invalid, "port: want 1 to 65535"))
		return
	}
	if r.Header.Get("Upgrade") != api.TunnelProtocol {
		s.fail(w, r, fault.Errorf(fault.Invalid, "want the header Upgrade: %s", api.TunnelProtocol))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), tunnelPatience)
	far, err := s.Fleet.OpenTunnel(ctx, id, kind, port)
	cancel()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer far.Close()
	near, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer near.Close()
	_, _ = io.WriteString(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+api.TunnelProtocol+"\r\n\r\n")
	if buffered.Flush() != nil {
		return
	}
	join(near, buffered.Reader, far)
}

// join copies both ways; when the far side ends, so does the near one. The near side's end is passed on
// as the end of its input only.
func join(near io.WriteCloser, input *bufio.Reader, far interface {
	io.ReadWriteCloser
	CloseWrite() error
}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(far, input)
		if err != nil {
			_ = far.Close()
			return
		}
		_ = far.CloseWrite()
	}()
	_, _ = io.Copy(near, far)
	_ = near.Close()
	<-done
}
