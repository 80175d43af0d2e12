package rest

import (
	"math"
	"net/http"

	"golang.org/x/sys/unix"

	"hayloft/cloud"
	"hayloft/network/address"
	"hayloft/server/api"
	"hayloft/server/scheduler"
)

// The views add to a stored object what is derived.

func (s *Server) vmView(vm cloud.VM) api.VM {
	live := s.Fleet.Live(vm.ID)
	v := api.VM{VM: vm, StateName: vm.Phase().String(), StateCode: vm.Phase().Short(), Step: live.Step, Rate: live.Rate, Done: live.Done,
		Total: live.Total, UsedCPU: live.CPUSeconds, UsedBytes: live.MemoryBytes}
	for _, c := range live.Caches {
		v.Caches = append(v.Caches, api.Cache{Disk: int(c.Disk), Mode: c.Mode, Cached: c.Cached, Total: c.Total, Undrained: c.Undrained,
			Degraded: c.Degraded, Error: c.Error})
	}
	if vm.HostID >= 0 {
		if h, err := s.Inv.Host(vm.HostID); err == nil {
			v.HostName = h.Name
		}
	}
	return v
}

func (s *Server) hostView(h cloud.Host) api.Host {
	view := &scheduler.Host{Host: h}
	v := api.Host{Host: h, StateName: h.State.String(), Connected: s.Fleet.Connected(h.ID), VMs: []int{}}
	for _, vm := range s.Inv.VMsOnHost(h.ID) {
		view.Add(&vm)
		v.VMs = append(v.VMs, vm.ID)
	}
	most := scheduler.Capacity(&h)
	v.UsedCPU, v.UsedMemoryMB, v.UsedDiskMB = math.Round(view.Used.CPU*1e6)/1e6, view.Used.MemoryMB, view.Used.DiskMB
	v.MaxCPU, v.MaxMemoryMB = most.CPU, most.MemoryMB
	return v
}

// imageUsers counts the machines of every image at once.
func (s *Server) imageUsers() map[int][]int {
	users := map[int][]int{}
	for _, row := range s.Inv.VMRows(func(vm *cloud.VM) bool { return vm.State != cloud.StateDone || vm.HostID >= 0 }) {
		for _, id := range row.Value.ImageIDs() {
			users[id] = append(users[id], row.ID)
		}
	}
	return users
}

func (s *Server) imageView(img cloud.Image, users []int) api.Image {
	v := api.Image{Image: img, TypeName: img.Type.String(), VMs: users}
	if v.VMs == nil {
		v.VMs = []int{}
	}
	if img.State == cloud.ImageStateReady && len(users) > 0 {
		v.State = cloud.ImageStateUsed
		if img.Persistent {
			v.State = cloud.ImageStateUsedPers
		}
	}
	v.StateName = v.State.String()
	v.Done, v.Total = s.Progress.Image(img.ID)
	for _, p := range s.Inv.Prefetches(func(p cloud.Prefetch) bool { return p.ImageID == img.ID }) {
		if p.State == cloud.PrefetchWanted {
			now := s.Fleet.Fetched(p.ImageID, p.HostID)
			p.Done, p.Total = now.Done, now.Total
		}
		found := api.Prefetched{Prefetch: p}
		if h, err := s.Inv.Host(p.HostID); err == nil {
			found.HostName = h.Name
		}
		v.Prefetches = append(v.Prefetches, found)
	}
	return v
}

func (s *Server) datastoreView(d cloud.Datastore) api.Datastore {
	v := api.Datastore{Datastore: d, TypeName: d.Type.String(), Images: []int{}}
	for _, img := range s.Inv.AllImages() {
		if img.DatastoreID == d.ID {
			v.Images = append(v.Images, img.ID)
		}
	}
	var fs unix.Statfs_t
	if isHere(d) && unix.Statfs(d.BasePath, &fs) == nil {
		v.TotalMB = int64(fs.Blocks) * fs.Bsize >> 20
		v.FreeMB = int64(fs.Bavail) * fs.Bsize >> 20
	}
	return v
}

// isHere says whether a datastore is a directory of this host, which need not be asked over a network how large it is.
func isHere(d cloud.Datastore) bool {
	driver, err := cloud.LookupDatastoreDriver(d.Driver)
	return err == nil && driver.Name == "path"
}

// datastoreDetail is a datastore with what its storage says.
func (s *Server) datastoreDetail(r *http.Request, id int) (any, error) {
	return viewed(s.Inv.Datastore, func(d cloud.Datastore) api.Datastore {
		v := s.datastoreView(d)
		capacity, err := s.Ops.Reach(r.Context(), d)
		if err != nil {
			v.Error = err.Error()
			return v
		}
		v.TotalMB, v.FreeMB = capacity.Total>>20, capacity.Free>>20
		return v
	}, id)
}

func (s *Server) networkView(n cloud.Network) api.Network {
	v := api.Network{Network: n, Leases: s.Inv.Leases(n.ID)}
	if v.Leases == nil {
		v.Leases = []cloud.Lease{}
	}
	for _, ar := range n.Ranges {
		if r, err := address.Parse(ar.ID, ar.Attributes, address.Defaults{}); err == nil {
			v.Size += r.Size
		}
	}
	return v
}

func (s *Server) clusterView(c cloud.Cluster) api.Cluster {
	v := api.Cluster{Cluster: c, Hosts: []int{}, Datastores: []int{}, Networks: []int{}}
	for _, h := range s.Inv.AllHosts() {
		if h.ClusterID == c.ID {
			v.Hosts = append(v.Hosts, h.ID)
		}
	}
	in := func(ids []int) bool {
		for _, id := range ids {
			if id == c.ID {
				return true
			}
		}
		return false
	}
	for _, d := range s.Inv.AllDatastores() {
		if in(d.Clusters) {
			v.Datastores = append(v.Datastores, d.ID)
		}
	}
	for _, n := range s.Inv.AllNetworks() {
		if in(n.Clusters) {
			v.Networks = append(v.Networks, n.ID)
		}
	}
	return v
}

func templateView(t cloud.VMTemplate) api.Template {
	return api.Template{VMTemplate: t, Text: t.Template.String()}
}

// object is the view of any object by kind and id, for watches; nil when it is gone.
func (s *Server) object(kind string, id int) any {
	var view any
	var err error
	switch kind {
	case cloud.KindVM:
		view, err = viewed(s.Inv.VM, s.vmView, id)
	case cloud.KindHost:
		view, err = viewed(s.Inv.Host, s.hostView, id)
	case cloud.KindImage:
		view, err = viewed(s.Inv.Image, func(i cloud.Image) api.Image { return s.imageView(i, s.Ops.ImageUsers(id)) }, id)
	case cloud.KindDatastore:
		view, err = viewed(s.Inv.Datastore, s.datastoreView, id)
	case cloud.KindTemplate:
		view, err = viewed(s.Inv.Template, templateView, id)
	case cloud.KindNetwork:
		view, err = viewed(s.Inv.Network, s.networkView, id)
	case cloud.KindCluster:
		view, err = viewed(s.Inv.Cluster, s.clusterView, id)
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	return view
}

func viewed[T, V any](get func(int) (T, error), view func(T) V, id int) (any, error) {
	value, err := get(id)
	if err != nil {
		return nil, err
	}
	return view(value), nil
}

func views[T, V any](all []T, view func(T) V) api.List[V] {
	list := api.List[V]{Items: make([]V, len(all))}
	for i := range all {
		list.Items[i] = view(all[i])
	}
	return list
}
