package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// largestSpan bounds a range of ids, so that a slip of the finger does not make a million requests.
const largestSpan = 10000

// machines turns what the user writes, ids, ranges 3..7, names, and commas between them, into ids, each
// once.
func machines(ctx context.Context, c *client.Client, args []string) ([]int, error) {
	var ids []int
	add := func(id int) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	var known []api.VM
	for _, arg := range args {
		for _, part := range parts(arg) {
			first, last, isNumbers, err := span(part)
			if err != nil {
				return nil, err
			}
			if isNumbers {
				for id := first; id <= last; id++ {
					add(id)
				}
				continue
			}
			if known == nil {
				if known, err = c.VMs(ctx, false); err != nil {
					return nil, err
				}
			}
			id, err := byName(known, part)
			if err != nil {
				return nil, err
			}
			add(id)
		}
	}
	return ids, nil
}

// machine is exactly one.
func machine(ctx context.Context, c *client.Client, arg string) (int, error) {
	ids, err := machines(ctx, c, []string{arg})
	if err == nil && len(ids) != 1 {
		err = fault.Errorf(fault.Invalid, "%q is %s: this works on one", arg, plural(len(ids), "machine"))
	}
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

func parts(arg string) []string {
	var list []string
	for part := range strings.SplitSeq(arg, ",") {
		list = append(list, strings.TrimSpace(part))
	}
	return list
}

// span reads an id or a range of ids.
func span(text string) (first, last int, isNumbers bool, err error) {
	if first, err = strconv.Atoi(text); err == nil {
		if first < 0 {
			return 0, 0, false, fault.Errorf(fault.Invalid, "vm %s: ids begin at 0", text)
		}
		return first, first, true, nil
	}
	from, to, isRange := strings.Cut(text, "..")
	first, err1 := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	switch {
	case !isRange || err1 != nil || err2 != nil:
		return 0, 0, false, nil // a name
	case first < 0 || last < first || last-first >= largestSpan:
		return 0, 0, false, fault.Errorf(fault.Invalid, "range %s: want FIRST..LAST, at most %d machines", text, largestSpan)
	}
	return first, last, true, nil
}

func byName(known []api.VM, name string) (int, error) {
	var ids []int
	for _, vm := range known {
		if vm.Name == name && vm.State != cloud.StateDone {
			ids = append(ids, vm.ID)
		}
	}
	switch {
	case name == "":
		return 0, fault.Errorf(fault.Invalid, "a machine's id or name is empty")
	case len(ids) == 0:
		return 0, fault.Errorf(fault.NotFound, "vm %q does not exist", name)
	case len(ids) > 1:
		return 0, fault.Errorf(fault.Invalid, "vm %q: machines %s have that name: use an id", name, idsText(ids))
	}
	return ids[0], nil
}
