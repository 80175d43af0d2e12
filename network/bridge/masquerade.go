package bridge

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"hayloft/network"
)

// setMasquerade makes a network's rule: what comes from its addresses and leaves through another link than its
// bridge takes that link's address. The rule's comment says what it is made of; when it stands there already,
// nothing is done.
func (r *rules) setMasquerade(n network.Network) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.prepareTranslate(); err != nil {
		return fmt.Errorf("network %d: %w", n.ID, err)
	}
	all, err := r.masquerades()
	if err != nil {
		return err
	}
	subnet := n.Gateway.Masked()
	comment := fmt.Sprintf("%s %s %s", r.tag.net(n.ID), n.Bridge, subnet)
	old := r.of(all, n.ID)
	if len(old) == 1 && commentOf(old[0]) == comment {
		return nil
	}
	c := &nftables.Conn{}
	for _, rule := range old {
		if err := c.DelRule(rule); err != nil {
			return fmt.Errorf("network %d: %w", n.ID, err)
		}
	}
	c.AddRule(&nftables.Rule{
		Table: r.translate, Chain: r.source, Exprs: masqueradeRule(subnet, n.Bridge),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("network %d: masquerade: %w", n.ID, err)
	}
	return nil
}

// dropMasquerade takes a network's rule away, if it has one.
func (r *rules) dropMasquerade(id int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, err := r.masquerades()
	if err != nil {
		return err
	}
	c := &nftables.Conn{}
	for _, rule := range r.of(all, id) {
		if err := c.DelRule(rule); err != nil {
			return fmt.Errorf("network %d: %w", id, err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("network %d: delete masquerade: %w", id, err)
	}
	return nil
}

func (r *rules) prepareTranslate() error {
	have, err := r.lookup(nftables.TableFamilyIPv4, r.source.Name)
	if have || err != nil {
		return err
	}
	c := &nftables.Conn{}
	c.AddTable(r.translate)
	c.AddChain(r.source)
	return unsupported("nftables masquerading", c.Flush())
}

// masquerades lists our rules.
func (r *rules) masquerades() ([]*nftables.Rule, error) {
	have, err := r.chainExists(nftables.TableFamilyIPv4, r.source.Name)
	if !have || err != nil {
		return nil, err
	}
	all, err := (&nftables.Conn{}).GetRules(r.translate, r.source)
	if err != nil {
		return nil, fmt.Errorf("table %s: rules: %w", r.translate.Name, err)
	}
	return all, nil
}

// of picks a network's rules.
func (r *rules) of(all []*nftables.Rule, id int) []*nftables.Rule {
	mark := r.tag.net(id)
	return slices.DeleteFunc(slices.Clone(all), func(rule *nftables.Rule) bool {
		tag, _, _ := strings.Cut(commentOf(rule), " ")
		return tag != mark
	})
}

func commentOf(rule *nftables.Rule) string {
	text, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
	return text
}

func masqueradeRule(subnet netip.Prefix, bridge string) []expr.Any {
	mask := make([]byte, 4)
	for i := range subnet.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	within := func(offset uint32, op expr.CmpOp) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
			&expr.Cmp{Op: op, Register: 1, Data: subnet.Addr().AsSlice()},
		}
	}
	return slices.Concat(
		within(12, expr.CmpOpEq),
		within(16, expr.CmpOpNeq),
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: interfaceName(bridge)},
			&expr.Masq{},
		},
	)
}
