package fastcopy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/disk/fastcopy"
)

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const host, repository = 5, 2
		l := fastcopy.NewLimiter(host, repository)
		var (
			mu         sync.Mutex
			all, most  int
			by, mostBy = map[string]int{}, 0
			wg         sync.WaitGroup
		)
		for i := range 60 {
			wg.Go(func() {
				name := fmt.Sprint("repository ", i%4)
				release, err := l.Acquire(t.Context(), name, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all++
				by[name]++
				most, mostBy = max(most, all), max(mostBy, by[name])
				mu.Unlock()
				time.Sleep(time.Duration(1+rand.IntN(50)) * time.Millisecond)
				mu.Lock()
				all--
				by[name]--
				mu.Unlock()
				release()
				release()
			})
		}
		wg.Wait()
		if most != host || mostBy != repository {
			t.Errorf("%d at once, %d from one repository", most, mostBy)
		}
	})
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := fastcopy.NewLimiter(2, 1)
		var mu sync.Mutex
		var events []string
		releases := map[string]func(){}
		ask := func(ctx context.Context, who, repository string) {
			go func() {
				release, err := l.Acquire(ctx, repository, func(position int) {
					mu.Lock()
					defer mu.Unlock()
					events = append(events, fmt.Sprint(who, " ", position))
				})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					events = append(events, who+" left")
					return
				}
				events = append(events, who+" runs")
				releases[who] = release
			}()
			synctest.Wait()
		}
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(events)
			if !slices.Equal(events, want) {
				t.Errorf("%q, not %q", events, want)
			}
			events = nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ask(t.Context(), "a", "x")
		ask(t.Context(), "b", "x") // waits for its repository
		ask(ctx, "c", "x")
		ask(t.Context(), "d", "y") // goes past them
		ask(t.Context(), "e", "z") // waits for the host
		expect("a runs", "b 1", "c 2", "d runs", "e 3")
		cancel()
		expect("c left", "e 2")
		releases["d"]()
		expect("e runs")
		releases["a"]()
		expect("b runs")
		releases["b"]()
		releases["e"]()
		ask(t.Context(), "f", "x")
		expect("f runs")
		releases["f"]()
	})
}
