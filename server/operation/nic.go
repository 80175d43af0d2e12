package operation

import (
	"fmt"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/cloud/template"
)

// wish is a NIC of a template before it has an address.
type wish struct {
	nic cloud.NIC
	ip  string // wanted address
}

// nics reads all NIC vectors.
func (o *Operations) nics(t template.Template) ([]wish, error) {
	defaults, _ := t.GetVector("NIC_DEFAULT")
	var wishes []wish
	for i, v := range t.GetAll("NIC") {
		w, err := o.nic(v, defaults)
		if err != nil {
			return nil, fault.Errorf(fault.ClassOf(err), "NIC %d: %w", i, err)
		}
		w.nic.ID = i
		wishes = append(wishes, w)
	}
	return wishes, nil
}

func (o *Operations) nic(v, defaults template.Vector) (wish, error) {
	var w wish
	if mode, ok := v.Get("NETWORK_MODE"); ok && mode != "" {
		return w, fault.Errorf(fault.Unsupported, "NETWORK_MODE is not supported")
	}
	id, hasID, err := v.Int("NETWORK_ID")
	if err != nil {
		return w, err
	}
	name, named := v.Get("NETWORK")
	switch {
	case hasID:
		if _, err := o.Inv.Network(id); err != nil {
			return w, err
		}
	case named:
		if id, err = o.networkNamed(name); err != nil {
			return w, err
		}
	default:
		return w, fault.Errorf(fault.Invalid, "names neither NETWORK nor NETWORK_ID")
	}
	w.nic.NetworkID = id
	w.ip, _ = v.Get("IP")
	if mac, ok := v.Get("MAC"); ok && mac != "" {
		return w, fault.Errorf(fault.Unsupported, "MAC is not supported: it follows from the address")
	}
	if w.nic.Model, _ = v.Get("MODEL"); w.nic.Model == "" {
		w.nic.Model, _ = defaults.Get("MODEL")
	}
	return w, nil
}

func (o *Operations) networkNamed(name string) (int, error) {
	for _, n := range o.Inv.AllNetworks() {
		if n.Name == name {
			return n.ID, nil
		}
	}
	return 0, fault.Errorf(fault.NotFound, "network %q does not exist", name)
}

// cards gives each wish an address.
func (l *leaser) cards(wishes []wish) ([]cloud.NIC, error) {
	var nics []cloud.NIC
	for _, w := range wishes {
		nic := w.nic
		if err := l.take(&nic, w.ip); err != nil {
			return nil, fmt.Errorf("NIC %d: %w", nic.ID, err)
		}
		nics = append(nics, nic)
	}
	return nics, nil
}
