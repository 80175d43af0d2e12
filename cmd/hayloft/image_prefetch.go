package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// prefetchFlags are those of `hayloft image prefetch`.
type prefetchFlags struct {
	hosts             []string
	all, wait, cancel bool
	rate              float64
}

func newImagePrefetchCommand(a *app) *cobra.Command {
	var f prefetchFlags
	cmd := one("prefetch IMAGE", "Bring an image to hosts before machines there need it",
		`hayloft image prefetch debian --hosts node-1,node-2 --wait
  hayloft image prefetch debian --all --rate 50
  hayloft image prefetch debian --all --cancel`, nil)
	cmd.RunE = a.remote(func(ctx context.Context, c *client.Client, args []string) error {
		switch {
		case f.all == (len(f.hosts) > 0):
			return usageError(cmd, "give --hosts, or --all")
		case f.rate < 0:
			return usageError(cmd, "--rate is %v MB/s", f.rate)
		case f.cancel && f.wait:
			return usageError(cmd, "--cancel has nothing to wait for")
		}
		err := c.Prefetch(ctx, args[0], api.Prefetch{Hosts: f.hosts, All: f.all, Rate: int64(f.rate * mebi), Cancel: f.cancel})
		if err != nil || !f.wait {
			return err
		}
		return a.waitPrefetch(ctx, c, args[0], f.hosts)
	})
	flags := cmd.Flags()
	flags.StringSliceVar(&f.hosts, "hosts", nil, "hosts, ids or names, with commas between them")
	flags.BoolVar(&f.all, "all", false, "all hosts that are connected")
	flags.Float64Var(&f.rate, "rate", 0, "MB/s that each host may take at most (0: no bound)")
	flags.BoolVar(&f.wait, "wait", false, "wait until it is there, and show how far it is")
	flags.BoolVar(&f.cancel, "cancel", false, "do not bring it any more; what is there stays")
	a.completeFlag(cmd, "hosts", cloud.KindHost)
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, false)
	return cmd
}

// waitPrefetch waits until an image is on the hosts, all that it is wished onto when none are given, with a bar for each.
func (a *app) waitPrefetch(ctx context.Context, c *client.Client, ref string, hosts []string) error {
	image, err := c.Image(ctx, ref)
	if err != nil {
		return err
	}
	m := a.newMeter()
	defer m.close()
	var failed []error
	image, err = c.WaitImage(ctx, image.ID, func(i api.Image, gone bool) (bool, error) {
		if gone {
			return false, fault.Errorf(fault.NotFound, "image %s was deleted before it was brought to all hosts", image.Name)
		}
		failed = nil
		var stages []stage
		under := 0
		for _, p := range i.Prefetches {
			if len(hosts) > 0 && !slices.Contains(hosts, p.HostName) && !slices.Contains(hosts, strconv.Itoa(p.HostID)) {
				continue
			}
			switch p.State {
			case cloud.PrefetchWanted:
				under++
			case cloud.PrefetchFailed:
				failed = append(failed, fault.Errorf(fault.ParseClass(p.Class), "image %s, host %s: %s", i.Name, p.HostName, p.Error))
			}
			stages = append(stages, stage{p.HostName, p.Done, p.Total})
		}
		m.update(prefetchText(&i, stages), stages...)
		return under == 0, nil
	})
	if err != nil {
		return err
	}
	if len(failed) == 0 {
		m.end(fmt.Sprintf("image %s: on all hosts", image.Name))
	}
	return together(failed)
}

func prefetchText(i *api.Image, stages []stage) string {
	var parts []string
	for _, s := range stages {
		parts = append(parts, fmt.Sprintf("%s %s of %s", s.name, bytesText(s.done), bytesText(s.total)))
	}
	return "image " + i.Name + ": " + strings.Join(parts, ", ")
}

var prefetchColumns = []column[api.Prefetched]{
	{title: "HOST", least: 6, cell: func(p *api.Prefetched) string { return p.HostName }},
	{title: "STAT", cell: func(p *api.Prefetched) string { return string(p.State) }, paint: prefetchColor},
	{title: "DONE", right: true, cell: func(p *api.Prefetched) string { return bytesText(p.Done) }},
	{title: "TOTAL", right: true, cell: func(p *api.Prefetched) string { return bytesText(p.Total) }},
	{title: "RATE", right: true, cell: func(p *api.Prefetched) string {
		if p.Rate == 0 {
			return "-"
		}
		return bytesText(p.Rate) + "/s"
	}},
	{title: "ASKED", cell: func(p *api.Prefetched) string { return momentText(p.Time) }},
	{title: "ERROR", least: 10, cell: func(p *api.Prefetched) string { return p.Error }},
}

func prefetchColor(p *api.Prefetched) color {
	switch p.State {
	case cloud.PrefetchDone:
		return green
	case cloud.PrefetchFailed:
		return red
	}
	return yellow
}

func newImagePrefetchesCommand(a *app) *cobra.Command {
	cmd := one("prefetches [IMAGE...]", "List the hosts that images are, or were, brought to", "hayloft image prefetches\n  hayloft image prefetches debian -o json",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			items, err := c.Images(ctx)
			if err != nil {
				return err
			}
			if len(args) > 0 {
				if items, err = chosenImages(ctx, c, args); err != nil {
					return err
				}
			}
			images.sort(items)
			return a.listPrefetches(items)
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindImage, true)
	return cmd
}

func chosenImages(ctx context.Context, c *client.Client, refs []string) ([]api.Image, error) {
	var chosen []api.Image
	for _, ref := range refs {
		image, err := c.Image(ctx, ref)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, image)
	}
	return chosen, nil
}

func (a *app) listPrefetches(items []api.Image) error {
	all, names := []api.Prefetched{}, map[int]string{}
	for _, i := range items {
		names[i.ID] = i.Name
		all = append(all, i.Prefetches...)
	}
	name := column[api.Prefetched]{title: "IMAGE", least: 8, cell: func(p *api.Prefetched) string { return names[p.ImageID] }}
	list := resource[api.Prefetched]{kind: cloud.KindPrefetch, columns: func(*app) []column[api.Prefetched] {
		return append([]column[api.Prefetched]{name}, prefetchColumns...)
	}, key: func(p *api.Prefetched) (int, string) { return p.HostID, p.HostName }}
	return list.write(a, all)
}

// showPrefetches is the part of an image's page about hosts that it is wished onto.
func showPrefetches(p *page, i *api.Image) {
	if len(i.Prefetches) == 0 {
		return
	}
	p.section("Prefetches")
	rows(p, i.Prefetches, prefetchColumns...)
}
