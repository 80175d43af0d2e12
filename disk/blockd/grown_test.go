package blockd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/disk/cache"
)

// TestGrownAndKilled: a process made the image as long as the disk and was killed before it remembered that. What the
// next one writes there, the one after it reads.
func TestGrownAndKilled(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			img, want := b.persistent("mine", 5)
			want = append(want, make([]byte, 20*chunk+512)...)
			ctx := t.Context()
			e := b.volumeExport("12.0", img, mode)
			e.Volume.Size = int64(len(want))
			d := b.daemon()
			must(t, d.Export(ctx, e))
			must(t, d.Close())
			must(t, os.Truncate(filepath.Join(b.repo.Path, img.Source), e.Volume.Size))
			b.killed(e)

			d = b.daemon()
			c := dial(t, e.Path)
			copy(want[50*chunk:], content(5*chunk+100, 6))
			must(t, c.Write(ctx, want[50*chunk:56*chunk], 50*chunk, false))
			must(t, c.Flush(ctx))
			c.Close()
			must(t, d.Settle(ctx, "12.0", nil))
			must(t, d.Close())
			if !bytes.Equal(b.inRepository(img), want) {
				t.Error("the image in the repository differs")
			}

			if mode != cache.Offline { // only there it is all that there is
				must(t, os.Remove(filepath.Join(e.Volume.Dir, "map")))
			}
			b.daemon()
			if !bytes.Equal(readAll(t, dial(t, e.Path)), want) {
				t.Error("reads differ after the restart")
			}
		})
	}
}

// killed has a volume that was closed look like one whose process was killed.
func (b *bench) killed(e Export) {
	b.t.Helper()
	path := filepath.Join(e.Volume.Dir, "state")
	text, err := os.ReadFile(path)
	must(b.t, err)
	unclean := strings.Replace(string(text), `"clean":true`, `"clean":false`, 1)
	if unclean == string(text) {
		b.t.Fatalf("state of the volume: %s", text)
	}
	must(b.t, os.WriteFile(path, []byte(unclean), 0o600))
}

// TestLengthIsRemembered: the source never says that it is longer than what is remembered.
func TestLengthIsRemembered(t *testing.T) {
	b := newBench(t)
	img, text := b.persistent("mine", 7)
	size := int64(len(text))
	repo := b.writable()
	e := b.volumeExport("12.0", img, cache.Back)
	_, err := repo.Own(t.Context(), img.Source, e.Volume.owner(), os.Geteuid(), os.Getegid())
	must(t, err)
	s := newSource(repo, img.Source, e.Volume.owner())
	defer s.Close()
	must(t, s.first(t.Context()))
	var kept int64
	full := errors.New("disk full")
	failing := error(nil)
	must(t, s.remembered(func(n int64) error {
		if failing == nil {
			kept = n
		}
		return failing
	}))
	if kept != size {
		t.Fatal(kept)
	}
	failing = full
	if err := s.Truncate(size + 100); !errors.Is(err, full) || s.Size() != size {
		t.Errorf("%v, size %d, not remembered as longer than %d", err, s.Size(), kept)
	}
	if err := s.Sync(); err != nil || s.Size() != kept {
		t.Errorf("%v, size %d, remembered as %d", err, s.Size(), kept)
	}
	failing = nil
	if err := s.Truncate(size + 100); err != nil || s.Size() != size+100 || kept != size+100 {
		t.Errorf("%v, size %d, remembered as %d", err, s.Size(), kept)
	}
}
