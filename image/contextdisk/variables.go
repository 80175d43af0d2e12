package contextdisk

import (
	"maps"
	"strconv"
	"strings"
)

// Input is what a machine's variables are made of. Attribute names are OpenNebula's, in capitals.
type Input struct {
	VMID         int
	Name         string
	UID, GID     int
	UNAME, GNAME string
	Context      map[string]string // the CONTEXT vector
	Template     map[string]string // single attributes of the machine's template, for $TEMPLATE[...]
	User         map[string]string // the owner's template, for $USER[...]
	NICs         []NIC
}

// NIC is one network interface. The first source that has an attribute counts: Attributes, AR, Network.
type NIC struct {
	ID         int               // NIC_ID: the n of ETHn
	Attributes map[string]string // the NIC vector with its lease: MAC, IP, IP6_GLOBAL, NETWORK, NETWORK_ID, ...
	AR         map[string]string // attributes of the address range of the lease
	Network    map[string]string // the network's template: DNS, GATEWAY, NETWORK_MASK, ...
	Aliases    []NIC             // their ID is the m of ETHn_ALIASm
}

// ethernet is one ETHn_ variable and the attributes that it comes from, the first one with a value.
type ethernet struct {
	variable   string
	attributes []string
	leased     bool // an address: from the NIC alone, as the range's is that of another machine
}

func ethernets() []ethernet {
	return []ethernet{
		{"MAC", []string{"MAC"}, true},
		{"IP", []string{"IP"}, true},
		{"IP6", []string{"IP6_GLOBAL", "IP6"}, true},
		{"IP6_ULA", []string{"IP6_ULA"}, true},
		{"MASK", []string{"NETWORK_MASK"}, false},
		{"NETWORK", []string{"NETWORK_ADDRESS"}, false},
		{"GATEWAY", []string{"GATEWAY"}, false},
		{"DNS", []string{"DNS"}, false},
		{"SEARCH_DOMAIN", []string{"SEARCH_DOMAIN"}, false},
		{"MTU", []string{"GUEST_MTU"}, false},
		{"METRIC", []string{"METRIC"}, false},
		{"METHOD", []string{"METHOD"}, false},
		{"VLAN_ID", []string{"VLAN_ID"}, false},
		{"ROUTES", []string{"ROUTES"}, false},
		{"EXTERNAL", []string{"EXTERNAL"}, false},
		{"VROUTER_IP", []string{"VROUTER_IP"}, false},
		{"VROUTER_IP6", []string{"VROUTER_IP6"}, false},
		{"VROUTER_MANAGEMENT", []string{"VROUTER_MANAGEMENT"}, false},
		{"IP6_GATEWAY", []string{"IP6_GATEWAY", "GATEWAY6"}, false},
		{"IP6_METRIC", []string{"IP6_METRIC"}, false},
		{"IP6_METHOD", []string{"IP6_METHOD"}, false},
		{"IP6_PREFIX_LENGTH", []string{"IP6_PREFIX_LENGTH", "PREFIX_LENGTH"}, false},
	}
}

func (n NIC) value(f ethernet) string {
	sources := []map[string]string{n.Attributes, n.AR, n.Network}
	if f.leased {
		sources = sources[:1]
	}
	for _, source := range sources {
		for _, name := range f.attributes {
			if value := source[name]; value != "" {
				return value
			}
		}
	}
	return ""
}

// Variables makes the variables of context.sh: those of CONTEXT with their $ expressions replaced; with
// NETWORK=YES the whole ETHn_ set of every NIC, empty ones too, where CONTEXT does not give a value itself; and
// SET_HOSTNAME from the machine's name unless CONTEXT has one. The input is not changed.
func Variables(in Input) map[string]string {
	out := make(map[string]string, len(in.Context)+len(in.NICs)*len(ethernets())+1)
	for name, value := range in.Context {
		out[name] = in.substitute(value)
	}
	if strings.EqualFold(strings.TrimSpace(in.Context["NETWORK"]), "YES") {
		for _, nic := range in.NICs {
			prefix := "ETH" + strconv.Itoa(nic.ID) + "_"
			addNIC(out, prefix, nic)
			for _, alias := range nic.Aliases {
				addNIC(out, prefix+"ALIAS"+strconv.Itoa(alias.ID)+"_", alias)
			}
		}
	}
	if _, given := in.Context["SET_HOSTNAME"]; !given {
		out["SET_HOSTNAME"] = HostName(in.Name, in.VMID)
	}
	return out
}

func addNIC(out map[string]string, prefix string, nic NIC) {
	for _, f := range ethernets() {
		if out[prefix+f.variable] == "" {
			out[prefix+f.variable] = nic.value(f)
		}
	}
}

// HostName turns a machine's name into a host name (RFC 1123): what is not a letter, digit, '-' or '.' becomes
// '-', labels have 1 to 63 characters and neither begin nor end with '-', all of it at most 253. Without
// anything left it is one-ID.
func HostName(name string, vmid int) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, name)
	var labels []string
	size := 0
	for label := range strings.SplitSeq(clean, ".") {
		label = strings.Trim(label, "-")
		label = strings.TrimRight(label[:min(len(label), 63)], "-")
		if label == "" || size+len(label) > 253 {
			continue
		}
		labels = append(labels, label)
		size += len(label) + 1
	}
	if len(labels) == 0 {
		return "one-" + strconv.Itoa(vmid)
	}
	return strings.Join(labels, ".")
}

// single is the value of $NAME and the like.
func (in Input) single(name string) (string, bool) {
	switch name {
	case "NAME":
		return in.Name, true
	case "VMID":
		return strconv.Itoa(in.VMID), true
	case "UID":
		return strconv.Itoa(in.UID), true
	case "GID":
		return strconv.Itoa(in.GID), true
	case "UNAME":
		return in.UNAME, true
	case "GNAME":
		return in.GNAME, true
	}
	return "", false
}

// attributesOf are those that a NIC or NETWORK expression can select by.
func (n NIC) attributesOf(noun string) map[string]string {
	if noun == "NIC" {
		return n.Attributes
	}
	network := maps.Clone(n.Network)
	if network == nil {
		network = make(map[string]string)
	}
	network["NETWORK"], network["NETWORK_ID"] = n.Attributes["NETWORK"], n.Attributes["NETWORK_ID"]
	return network
}
