package cloud

import "hayloft/cloud/template"

// Network is a virtual network with address ranges.
type Network struct {
	ID       int               `json:"id"`
	Name     string            `json:"name"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	VNMAD    string            `json:"vn_mad"` // bridge, fw
	Bridge   string            `json:"bridge"`
	PhyDev   string            `json:"phydev,omitempty"`
	Filter   bool              `json:"filter"`       // anti-spoofing of MAC and IP
	Host     bool              `json:"host_gateway"` // the host itself takes GATEWAY on the bridge
	NAT      bool              `json:"nat"`          // and masquerades what leaves it
	MTU      int               `json:"mtu,omitempty"`
	Clusters []int             `json:"clusters"`
	Ranges   []AddressRange    `json:"ranges"`
	Template template.Template `json:"template"` // DNS, GATEWAY, NETWORK_MASK, ...
}

// AddressRange is one AR of a network, as OpenNebula's attributes.
type AddressRange struct {
	ID         int               `json:"id"`
	Attributes map[string]string `json:"attributes"` // TYPE, IP, MAC, SIZE, GLOBAL_PREFIX, ...
}

// Lease is one address of a network in use. Held leases have VM -1.
type Lease struct {
	NetworkID int    `json:"network_id"`
	Range     int    `json:"range"`
	Index     int    `json:"index"`
	IP        string `json:"ip,omitempty"`
	MAC       string `json:"mac"`
	VM        int    `json:"vm"`
	NIC       int    `json:"nic"`
}
