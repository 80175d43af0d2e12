package main

import (
	"net/http"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/server/api"
)

// prefetched is an image on its way to two hosts.
func prefetched(states ...cloud.PrefetchState) api.Image {
	image := api.Image{Image: cloud.Image{ID: 1, Name: "tiny", State: cloud.ImageStateReady}, StateName: "READY"}
	for i, state := range states {
		p := cloud.Prefetch{ImageID: 1, HostID: i, State: state, Done: 5, Total: 10}
		if state == cloud.PrefetchFailed {
			p.Error, p.Class = "LS_MAX is reached", "out-of-space"
		}
		image.Prefetches = append(image.Prefetches, api.Prefetched{Prefetch: p, HostName: []string{"node-1", "node-2"}[i]})
	}
	return image
}

func TestPrefetchWaits(t *testing.T) {
	const wanted, there, failed = cloud.PrefetchWanted, cloud.PrefetchDone, cloud.PrefetchFailed
	for name, tt := range map[string]struct {
		after  []cloud.PrefetchState
		hosts  string
		status int
		says   string
	}{
		"all there":               {[]cloud.PrefetchState{there, there}, "--all", 0, ""},
		"one fails":               {[]cloud.PrefetchState{there, failed}, "--all", 7, "image tiny, host node-2: LS_MAX is reached"},
		"the other one is slower": {[]cloud.PrefetchState{there, wanted}, "--hosts=node-1", 0, ""},
		"by id":                   {[]cloud.PrefetchState{wanted, there}, "--hosts=1", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConsole(t)
			c.server.Put(cloud.KindImage, prefetched(wanted, wanted))
			c.server.Answer("POST /v1/images/{ref}/prefetch", func(*http.Request, []byte) (any, error) {
				c.server.Put(cloud.KindImage, prefetched(tt.after...))
				return nil, nil
			})
			status, _, complaint := c.run("image", "prefetch", "tiny", tt.hosts, "--wait")
			if status != tt.status || !strings.Contains(complaint, tt.says) {
				t.Errorf("exit status %d, %q; want %d, %q", status, complaint, tt.status, tt.says)
			}
		})
	}
}
