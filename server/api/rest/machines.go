package rest

import (
	"net/http"
	"strconv"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
	"hayloft/server/api"
	"hayloft/server/operation"
)

func (s *Server) machines(handle route) {
	handle("GET /v1/vms", s.listVMs)
	handle("GET /v1/vms/{ref}", show(s.vmRef, s.Inv.VM, s.vmView))
	handle("POST /v1/vms", s.createVMs)
	handle("POST /v1/vms/{ref}/action", one(s.vmRef, s.action))
	handle("POST /v1/vms/{ref}/deploy", one(s.vmRef, s.deploy))
	handle("POST /v1/vms/{ref}/recover", one(s.vmRef, s.recover))
	handle("POST /v1/vms/{ref}/resize", one(s.vmRef, s.resize))
	handle("POST /v1/vms/{ref}/disks/{disk}/saveas", one(s.vmRef, s.saveAs))
	handle("POST /v1/vms/{ref}/disks/{disk}/cache", one(s.vmRef, s.diskCache))
}

func (s *Server) listVMs(r *http.Request) (any, error) {
	all := r.URL.Query().Get("all") == "1"
	rows := s.Inv.VMRows(func(vm *cloud.VM) bool { return all || vm.State != cloud.StateDone })
	list := api.List[api.VM]{Items: make([]api.VM, len(rows))}
	for i, row := range rows {
		list.Items[i] = s.vmView(row.Value)
	}
	return list, nil
}

func (s *Server) createVMs(r *http.Request) (any, error) {
	body, err := decode[api.CreateVMs](r)
	if err != nil {
		return nil, err
	}
	request := operation.CreateVMs{TemplateID: -1, Name: body.Name, Count: max(body.Count, 1), Hold: body.Hold}
	if body.Count < 0 {
		return nil, fault.Errorf(fault.Invalid, "count is %d", body.Count)
	}
	if body.Template != "" {
		if request.TemplateID, err = s.templateRef(body.Template); err != nil {
			return nil, err
		}
	}
	if request.Text, err = template.Parse(body.Text); err != nil {
		return nil, err
	}
	ids, err := s.Ops.CreateVMs(r.Context(), request)
	return api.CreatedVMs{IDs: ids}, err
}

func (s *Server) action(r *http.Request, id int) (any, error) {
	body, err := decode[api.Action](r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.Action(r.Context(), id, body.Action)
}

func (s *Server) deploy(r *http.Request, id int) (any, error) {
	body, err := decode[api.Deploy](r)
	if err != nil {
		return nil, err
	}
	host, err := s.hostRef(body.Host)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.Deploy(r.Context(), id, host, body.Enforce)
}

func (s *Server) recover(r *http.Request, id int) (any, error) {
	body, err := decode[api.Recover](r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.Recover(r.Context(), id, body.Operation)
}

func (s *Server) resize(r *http.Request, id int) (any, error) {
	body, err := decode[api.Resize](r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.Resize(r.Context(), id, body.CPU, body.VCPU, body.MemoryMB)
}

func (s *Server) saveAs(r *http.Request, id int) (any, error) {
	body, err := decode[api.SaveAs](r)
	if err != nil {
		return nil, err
	}
	disk, err := diskOf(r)
	if err != nil {
		return nil, err
	}
	if body.WhenDone {
		return api.Created{ID: -1}, s.Ops.SaveWhenDone(r.Context(), id, disk, body.Name)
	}
	image, err := s.Ops.SaveAs(r.Context(), id, disk, body.Name)
	return api.Created{ID: image}, err
}

func (s *Server) diskCache(r *http.Request, id int) (any, error) {
	body, err := decode[api.DiskCache](r)
	if err != nil {
		return nil, err
	}
	disk, err := diskOf(r)
	if err != nil {
		return nil, err
	}
	return nil, s.Ops.SetDiskCache(r.Context(), id, disk, operation.DiskCache(body))
}

func diskOf(r *http.Request) (int, error) {
	disk, err := strconv.Atoi(r.PathValue("disk"))
	if err != nil {
		return 0, fault.Errorf(fault.Invalid, "%q is no disk number", r.PathValue("disk"))
	}
	return disk, nil
}
