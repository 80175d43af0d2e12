package proof

import (
	"testing"

	"hayloft/disk/cache"
	"hayloft/disk/cache/base"
	"hayloft/disk/cache/volume"
)

func TestVolumes(t *testing.T) {
	for _, mode := range []cache.Mode{cache.Around, cache.Through, cache.Back, cache.Offline} {
		t.Run(string(mode), func(t *testing.T) {
			points := 0
			for seed := range uint64(100) {
				r, err := scenario(t, seed, Subject{Name: "volume", Mode: mode, Volume: volume.Open})
				if err != nil {
					t.Error(err)
					return
				}
				points += r.Points
			}
			t.Logf("%d crash points", points)
		})
	}
}

func TestBase(t *testing.T) {
	points := 0
	for seed := range uint64(100) {
		r, err := scenario(t, seed, Subject{Name: "base", Base: base.Open})
		if err != nil {
			t.Fatal(err)
		}
		points += r.Points
	}
	t.Logf("%d crash points", points)
}
