package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"hayloft/cloud/fault"
	"hayloft/store"
)

func electionName() string { return strings.TrimSuffix(corner(), "/") }

func (b *bench) campaign(s store.Store, name, value string) store.Leadership {
	b.Helper()
	l, err := s.Campaign(b.ctx(), name, value)
	if err != nil {
		b.Fatalf("Campaign(%q) of %s: %v", name, value, err)
	}
	return l
}

// candidate campaigns in the background, and returns when it stands in the election.
func (b *bench) candidate(ctx context.Context, s store.Store, name, value string) <-chan store.Leadership {
	b.Helper()
	prefix, _ := store.ElectionKeys(name)
	_, revision := b.list(s, prefix)
	changes := b.watch(s, prefix, revision)
	won := make(chan store.Leadership, 1)
	go func() {
		defer close(won)
		if l, err := s.Campaign(ctx, name, value); err == nil {
			won <- l
		}
	}()
	b.take(changes, 1)
	return won
}

func (b *bench) leader(s store.Store, name string) string {
	b.Helper()
	value, ok, err := store.Leader(b.ctx(), s, name)
	if err != nil {
		b.Fatal(err)
	}
	if !ok {
		return "nobody"
	}
	return value
}

func (b *bench) resign(l store.Leadership) {
	b.Helper()
	for range 2 {
		if err := l.Resign(b.ctx()); err != nil {
			b.Fatalf("Resign: %v", err)
		}
	}
	wait(b, "Lost after Resign", l.Lost())
}

func electionOrder(b *bench) {
	one, two, name := b.client(), b.client(), electionName()
	if got := b.leader(one, name); got != "nobody" {
		b.Errorf("before the first campaign %s leads", got)
	}
	first := b.campaign(one, name, "first")
	second := b.candidate(b.ctx(), two, name, "second")
	third := b.candidate(b.ctx(), one, name, "third")
	for _, s := range []store.Store{one, two} {
		if got := b.leader(s, name); got != "first" {
			b.Errorf("%s leads", got)
		}
	}
	select {
	case <-second:
		b.Fatal("two leaders")
	case <-third:
		b.Fatal("two leaders")
	case <-first.Lost():
		b.Fatal("leadership lost without a cause")
	default:
	}
	b.resign(first)
	l := wait(b, "takeover by the second", second)
	if got := b.leader(one, name); got != "second" {
		b.Errorf("after the first resigned %s leads", got)
	}
	b.resign(l)
	b.resign(wait(b, "takeover by the third", third))
	if got := b.leader(one, name); got != "nobody" {
		b.Errorf("after all resigned %s leads", got)
	}
}

func electionNames(b *bench) {
	s := b.client()
	for _, name := range []string{"", "a/b", "/"} {
		_, err := s.Campaign(b.ctx(), name, "x")
		b.class(fmt.Sprintf("Campaign(%q)", name), err, fault.Invalid)
	}
	one := electionName()
	b.campaign(s, one, "x")
	b.campaign(s, one+"x", "another election with a longer name")
}

func electionCancelled(b *bench) {
	one, two, name := b.client(), b.client(), electionName()
	first := b.campaign(one, name, "first")
	ctx, cancel := context.WithCancel(b.ctx())
	second := b.candidate(ctx, two, name, "second")
	cancel()
	if l := wait(b, "end of the campaign", second); l != nil {
		b.Fatal("a cancelled campaign was won")
	}
	third := b.candidate(b.ctx(), two, name, "third")
	b.resign(first)
	b.resign(wait(b, "takeover past the candidate that left", third))
	if _, err := two.Campaign(ctx, name, "late"); !errors.Is(err, context.Canceled) {
		b.Errorf("Campaign with an ended context: %v", err)
	}
	if got := b.leader(one, name); got != "nobody" {
		b.Errorf("%s leads", got)
	}
}

func electionClose(b *bench) {
	one, two, name := b.client(), b.client(), electionName()
	first := b.campaign(one, name, "first")
	second := b.candidate(b.ctx(), two, name, "second")
	if err := one.Close(); err != nil {
		b.Fatal(err)
	}
	wait(b, "Lost after Close", first.Lost())
	wait(b, "takeover after Close", second)
	if err := first.Resign(b.ctx()); err != nil {
		b.Errorf("Resign after Close: %v", err)
	}
	third := make(chan error, 1)
	go func() {
		_, err := two.Campaign(context.Background(), name, "third")
		third <- err
	}()
	if err := two.Close(); err != nil {
		b.Fatal(err)
	}
	b.class("campaign while the store closes", wait(b, "end of the campaign", third), fault.Unavailable)
}

func electionFence(b *bench) {
	one, two, name, c := b.client(), b.client(), electionName(), corner()
	first := b.campaign(one, name, "first")
	b.txn(one, []store.Cond{first.Fence()}, store.Put(c+"a", []byte("by the first")))
	b.txn(two, []store.Cond{first.Fence()}) // a fence is true for whoever asks
	next := b.candidate(b.ctx(), two, name, "second")
	b.resign(first)
	second := wait(b, "takeover", next)
	_, err := one.Txn(b.ctx(), []store.Cond{first.Fence()}, []store.Op{store.Put(c+"a", []byte("too late"))})
	b.class("transaction of a former leader", err, fault.Busy)
	var conflict *store.Conflict
	if !errors.As(err, &conflict) || conflict.Cond != first.Fence() {
		b.Errorf("conflict %+v does not name the fence", conflict)
	}
	if rec := b.get(two, c+"a"); string(rec.Value) != "by the first" {
		b.Errorf("a former leader wrote %q", rec.Value)
	}
	b.txn(two, []store.Cond{second.Fence()}, store.Put(c+"a", []byte("by the second")))
}

// electionContest lets several campaigners take turns; in a turn, nobody else may be in theirs.
func electionContest(b *bench) {
	const campaigners, turns = 5, 3
	clients := []store.Store{b.client(), b.client()}
	name, c, ctx := electionName(), corner(), b.ctx()
	var leading atomic.Int32
	var all sync.WaitGroup
	for i := range campaigners {
		all.Go(func() {
			s := clients[i%len(clients)]
			for range turns {
				l, err := s.Campaign(ctx, name, strconv.Itoa(i))
				if err != nil {
					b.Errorf("campaigner %d: %v", i, err)
					return
				}
				if leading.Add(1) != 1 {
					b.Errorf("campaigner %d leads while another does", i)
				}
				if err := increment(ctx, s, c+"turns", l.Fence()); err != nil {
					b.Errorf("campaigner %d in its turn: %v", i, err)
				}
				leading.Add(-1)
				if err := l.Resign(ctx); err != nil {
					b.Errorf("campaigner %d: Resign: %v", i, err)
				}
			}
		})
	}
	all.Wait()
	if got := string(b.get(clients[0], c+"turns").Value); got != strconv.Itoa(campaigners*turns) {
		b.Errorf("%s turns of %d", got, campaigners*turns)
	}
}
