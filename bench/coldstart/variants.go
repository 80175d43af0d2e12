package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// variant is one way to start a machine on a host that has nothing.
type variant struct {
	name    string
	measure func(ctx context.Context, s *subject) (seconds float64, bytes int64, err error)
}

func (b *bench) variants() []variant {
	by := func(p plan) func(context.Context, *subject) (float64, int64, error) {
		return func(ctx context.Context, s *subject) (float64, int64, error) { return b.hayloft(ctx, s, p) }
	}
	// Without a profile first: it is the run that records one.
	return []variant{
		{"hayloft, lazy", by(plan{mode: "AROUND", preload: "0", count: 1})},
		{"hayloft, lazy with boot profile", by(plan{mode: "AROUND", preload: "AUTO", count: 1})},
		{"hayloft, whole first (OFFLINE)", by(plan{mode: "OFFLINE", preload: "AUTO", count: 1})},
		{"copied whole first, plain QEMU", b.copyFirst},
		{"QEMU copy-on-read over https", b.copyOnRead},
	}
}

func (b *bench) image(ctx context.Context, s *subject) (imageOutcome, error) {
	out := imageOutcome{Name: s.name, Size: s.index.Length(), Data: s.index.DataBytes()}
	variants := b.variants()
	if b.options.only != "" {
		var chosen []variant
		for name := range strings.SplitSeq(b.options.only, ",") {
			for _, v := range variants {
				if strings.Contains(v.name, strings.TrimSpace(name)) {
					chosen = append(chosen, v)
				}
			}
		}
		variants = chosen
	}
	var err error
	if out.ReadSet, err = b.measureReadSet(ctx, s); err != nil {
		return out, fmt.Errorf("read set: %w", err)
	}
	out.Variants = make([]variantResult, len(variants))
	for i, v := range variants {
		out.Variants[i].Name = v.name
	}
	for range b.options.runs {
		for i, v := range variants {
			say("%s: %s", s.name, v.name)
			seconds, bytes, err := v.measure(ctx, s)
			if err != nil {
				return out, fmt.Errorf("%s: %w", v.name, err)
			}
			say("  %.1f s, %.1f MB", seconds, mb(bytes))
			out.Variants[i].add(seconds, bytes)
		}
	}
	return out, nil
}

// many starts machines at once, and one alone, both without a profile.
func (b *bench) many(ctx context.Context, s *subject) (*manyOutcome, error) {
	if err := os.RemoveAll(s.profile()); err != nil {
		return nil, err
	}
	m := &manyOutcome{Machines: b.options.many}
	var err error
	say("one machine, for comparison")
	if _, m.OneBytes, err = b.hayloft(ctx, s, plan{mode: "AROUND", preload: "0", count: 1}); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(s.profile()); err != nil {
		return nil, err
	}
	say("%d machines at once", m.Machines)
	if m.Seconds, m.Bytes, err = b.hayloft(ctx, s, plan{mode: "AROUND", preload: "0", count: m.Machines}); err != nil {
		return nil, err
	}
	m.Ratio = float64(m.Bytes) / float64(m.OneBytes)
	return m, nil
}
