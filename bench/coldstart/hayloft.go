package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hayloft/cloud"
	"hayloft/image"
	"hayloft/lab/fleet"
	"hayloft/server/api"
)

// plan is how Hayloft is asked to start machines.
type plan struct {
	mode    string // CACHE_MODE
	preload string // PRELOAD_SIZE
	count   int
}

// hayloft deploys on a fresh Hayloft whose host has nothing of the image, and returns the seconds from submission
// to the last answer and the bytes that the repository sent until then.
func (b *bench) hayloft(ctx context.Context, s *subject, p plan) (seconds float64, bytes int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	f, err := fleet.Start(ctx, fleet.Config{Binary: b.options.binary, Kind: "cold", Dir: b.options.dir, Args: []string{"--log-level", "warn"}})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Stop(context.WithoutCancel(ctx))) }()
	web, err := b.serve(s, f.Site)
	if err != nil {
		return 0, 0, err
	}
	defer web.Close()
	if err := b.register(ctx, f, s, p, web.URL, web.CAFile); err != nil {
		return 0, 0, err
	}
	before, began := web.Sent(), time.Now()
	ids, err := f.Deploy(ctx, "cold", p.count)
	if err != nil {
		return 0, 0, err
	}
	machines, err := f.Follow(ctx, ids, nil)
	if err != nil {
		return 0, 0, err
	}
	bytes = web.Sent() - before
	for _, m := range machines {
		if m.Err != nil {
			return 0, 0, fmt.Errorf("%w\n%s", m.Err, f.Log(20))
		}
		seconds = max(seconds, m.Answered.Sub(began).Seconds())
	}
	return seconds, bytes, b.keepProfile(ctx, f, s)
}

func (b *bench) register(ctx context.Context, f *fleet.Fleet, s *subject, p plan, url, ca string) error {
	_, err := f.Client.CreateDatastore(ctx, fmt.Sprintf("NAME=web DS_MAD=http BASE_PATH=%q CA_FILE=%q CACHE_FILL=NO", url, ca), "")
	if err != nil {
		return err
	}
	id, err := f.Client.CreateImage(ctx, fmt.Sprintf("NAME=cold SOURCE=%q FORMAT=raw TYPE=OS", objectName), "web")
	if err != nil {
		return err
	}
	_, err = f.Client.WaitImage(ctx, id, func(i api.Image, gone bool) (bool, error) {
		if gone || i.State == cloud.ImageStateError {
			return true, fmt.Errorf("image: %s", i.Error)
		}
		return i.State == cloud.ImageStateReady, nil
	})
	if err != nil {
		return err
	}
	if err := f.CreateNetwork(ctx); err != nil {
		return err
	}
	_, err = f.Client.CreateTemplate(ctx, fmt.Sprintf(`NAME="cold" HYPERVISOR="qemu" CPU="0.05" VCPU="1" MEMORY="%d"
DISK=[IMAGE="cold", CACHE_MODE=%q, PRELOAD_SIZE=%q]
NIC=[NETWORK=%q]
CONTEXT=[NETWORK="YES", SSH_PUBLIC_KEY=%q, SET_HOSTNAME="$NAME"]
`, s.memoryMB, p.mode, p.preload, fleet.NetworkName, f.Prober.Key()))
	return err
}

// profileLimit is how long after the machine has answered a host may still record what its boot touches.
const profileLimit = 3 * time.Minute

// keepProfile puts what the host recorded of the first boot beside the image, as it does itself where a repository
// can be written to.
func (b *bench) keepProfile(ctx context.Context, f *fleet.Fleet, s *subject) error {
	if _, err := os.Stat(s.profile()); err == nil {
		return nil
	}
	base := filepath.Join(f.Dir, "state/agent/store/base", strings.TrimPrefix(s.index.Digest(), "blake3:"))
	ctx, cancel := context.WithTimeout(ctx, profileLimit)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(filepath.Join(base, "profile"))
		if err == nil {
			profile, err := image.UnmarshalProfile(text, s.index)
			if err != nil {
				return err
			}
			say("boot profile: %d chunks", len(profile))
			return os.WriteFile(s.profile(), text, 0o644)
		}
		if _, err := os.Stat(filepath.Join(base, "complete")); err == nil {
			return nil // copied whole: nothing was recorded
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no boot profile in %s: %w", base, ctx.Err())
		}
	}
}
