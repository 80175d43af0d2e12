package inventory

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/store"
)

// KindLease is the first part of the keys of leases: one key an address, so that two machines can never
// be given the same one.
const KindLease = "lease"

// LeaseKey is where the lease of an address is kept.
func LeaseKey(network, addressRange, index int) string {
	return fmt.Sprintf("%s/%010d/%06d/%010d", KindLease, network, addressRange, index)
}

// LeaseOps take a free address for its owner; the transaction fails with Busy when it is taken.
func LeaseOps(l cloud.Lease) (store.Cond, store.Op, error) {
	key := LeaseKey(l.NetworkID, l.Range, l.Index)
	value, err := json.Marshal(l)
	return store.Cond{Key: key}, store.Put(key, value), err
}

// PersistentKey is held by the one machine that uses a persistent image.
func PersistentKey(image int) string { return fmt.Sprintf("persistent/%010d", image) }

func (inv *Inventory) setLease(e store.Event) error {
	if e.Deleted {
		delete(inv.leases, e.Key)
		return nil
	}
	var l cloud.Lease
	if err := json.Unmarshal(e.Value, &l); err != nil {
		return fault.As(fault.Corrupt, err)
	}
	inv.leases[e.Key] = l
	return nil
}

// Leases lists the leases of a network by range and index.
func (inv *Inventory) Leases(network int) []cloud.Lease {
	prefix := fmt.Sprintf("%s/%010d/", KindLease, network)
	inv.mu.RLock()
	defer inv.mu.RUnlock()
	var found []cloud.Lease
	for key, l := range inv.leases {
		if strings.HasPrefix(key, prefix) {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b cloud.Lease) int {
		if a.Range != b.Range {
			return a.Range - b.Range
		}
		return a.Index - b.Index
	})
	return found
}

// NameKey is held by the object of a kind that has the name; kinds whose names are unique per owner are
// given the owner's id, others 0.
func NameKey(kind string, owner int, name string) string {
	return fmt.Sprintf("name/%s/%d/%s", kind, owner, name)
}
