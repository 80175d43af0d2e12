package bridge

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/network"
)

// rules keeps our two nftables tables: family bridge with one chain a port, found through a verdict map keyed
// on the port's name, so that a port comes and goes in one small transaction; and family ip with one masquerading
// rule a network. The kernel holds the state; nothing is remembered here.
type rules struct {
	tag        tagger
	filter     *nftables.Table
	prerouting *nftables.Chain
	members    *nftables.Set
	translate  *nftables.Table
	source     *nftables.Chain

	mu    sync.Mutex // one transaction at a time
	leave departures
}

const portChain = "port-" // before a port's name: its chain

func newRules(tag tagger) *rules {
	filter := &nftables.Table{Name: tag.table(), Family: nftables.TableFamilyBridge}
	translate := &nftables.Table{Name: tag.table(), Family: nftables.TableFamilyIPv4}
	return &rules{
		tag:    tag,
		filter: filter,
		prerouting: &nftables.Chain{
			Name: "prerouting", Table: filter, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-200),
		},
		members: &nftables.Set{
			Name: "ports", Table: filter, IsMap: true, KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict,
			KeyByteOrder: binaryutil.NativeEndian, // so that nft prints the names
		},
		translate: translate,
		source: &nftables.Chain{
			Name: "postrouting", Table: translate, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		},
	}
}

// setPort makes exactly the port's rules. An unfiltered port gets a chain as well, which lets everything pass:
// it marks the port as ours. On a kernel that cannot filter, unfiltered ports work unmarked.
func (r *rules) setPort(p network.Port, id identity) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.prepareFilter(); err != nil {
		if !p.Filter && fault.Is(err, fault.Unsupported) {
			return nil
		}
		return fmt.Errorf("port %s: %w", p.Name, err)
	}
	c := &nftables.Conn{}
	chain := c.AddChain(&nftables.Chain{Name: portChain + p.Name, Table: r.filter})
	c.FlushChain(chain)
	comment := userdata.AppendString(nil, userdata.TypeComment, r.tag.port(p.Machine))
	for _, exprs := range portRules(id) {
		c.AddRule(&nftables.Rule{Table: r.filter, Chain: chain, Exprs: exprs, UserData: comment})
	}
	element := nftables.SetElement{Key: interfaceName(p.Name), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}}
	if err := c.SetAddElements(r.members, []nftables.SetElement{element}); err != nil {
		return fmt.Errorf("port %s: rules: %w", p.Name, err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("port %s: rules: %w", p.Name, err)
	}
	return nil
}

// has tells whether a port has rules of ours.
func (r *rules) has(port string) (bool, error) {
	return r.chainExists(nftables.TableFamilyBridge, portChain+port)
}

// ports lists the names of the ports that have rules.
func (r *rules) ports() ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if have, err := r.chainExists(nftables.TableFamilyBridge, r.prerouting.Name); !have || err != nil {
		return nil, err
	}
	return r.memberNames()
}

func (r *rules) memberNames() ([]string, error) {
	elements, err := (&nftables.Conn{}).GetSetElements(r.members)
	if err != nil {
		return nil, fmt.Errorf("table %s: ports: %w", r.filter.Name, err)
	}
	names := make([]string, len(elements))
	for i, e := range elements {
		names[i] = unix.ByteSliceToString(e.Key)
	}
	return names, nil
}

// prepareFilter makes the table with its map and hook in one transaction, unless it is there.
func (r *rules) prepareFilter() error {
	have, err := r.lookup(nftables.TableFamilyBridge, r.prerouting.Name)
	if have || err != nil {
		return err
	}
	c := &nftables.Conn{}
	c.AddTable(r.filter)
	if err := c.AddSet(r.members, nil); err != nil {
		return fmt.Errorf("table %s: %w", r.filter.Name, err)
	}
	c.AddChain(r.prerouting)
	c.AddRule(&nftables.Rule{Table: r.filter, Chain: r.prerouting, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: r.members.Name, SetID: r.members.ID},
	}})
	return unsupported("nftables family bridge", c.Flush())
}

// dropAll deletes both tables.
func (r *rules) dropAll() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(
		r.dropTable(r.filter, r.prerouting.Name),
		r.dropTable(r.translate, r.source.Name),
	)
}

// prune deletes the tables that nothing uses any more.
func (r *rules) prune() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if have, err := r.chainExists(nftables.TableFamilyBridge, r.prerouting.Name); err != nil {
		return err
	} else if have {
		names, err := r.memberNames()
		if err != nil {
			return err
		}
		if len(names) == 0 {
			if err := r.dropTable(r.filter, r.prerouting.Name); err != nil {
				return err
			}
		}
	}
	masks, err := r.masquerades()
	if err != nil || len(masks) > 0 {
		return err
	}
	return r.dropTable(r.translate, r.source.Name)
}

func (r *rules) dropTable(t *nftables.Table, chain string) error {
	if have, err := r.chainExists(t.Family, chain); !have || err != nil {
		return err
	}
	c := &nftables.Conn{}
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("table %s: delete: %w", t.Name, err)
	}
	return nil
}

// chainExists asks for one chain of our table by name. A kernel without nftables has none.
func (r *rules) chainExists(family nftables.TableFamily, chain string) (bool, error) {
	have, err := r.lookup(family, chain)
	if fault.Is(err, fault.Unsupported) {
		return false, nil
	}
	return have, err
}

// lookup is chainExists with fault.Unsupported for a kernel without nftables.
func (r *rules) lookup(family nftables.TableFamily, chain string) (bool, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(r.tag.table())))
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chain)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, unsupported("nftables", err)
}

// unsupported classifies what a kernel answers when a part of nftables is not built in.
func unsupported(part string, err error) error {
	for _, missing := range []unix.Errno{unix.EINVAL, unix.ENOENT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, missing) {
			return fault.Errorf(fault.Unsupported, "the kernel lacks %s: %w", part, err)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", part, err)
	}
	return nil
}

// interfaceName is a name as the kernel compares it.
func interfaceName(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}
