package blockd

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"hayloft/disk/cache"
)

// TestStatusSaysWhatIsWaitedFor: while a machine waits for a repository that is away, the export, or its base, says why; not
// any more once it answers.
func TestStatusSaysWhatIsWaitedFor(t *testing.T) {
	b := newBench(t)
	want := content(3*chunk, 1)
	lazy, plain := b.image(3, "lazy", want), b.image(4, "plain", want)
	mine, own := b.persistent("mine", 5)
	b.config.Patience = 5 * time.Minute
	d := b.daemon()
	exports := map[string]Export{"12.0": b.baseExport("12.0", lazy), "12.1": b.directExport("12.1", plain, 0, true), "12.2": b.volumeExport("12.2", mine, cache.Around)}
	for _, e := range exports {
		must(t, d.Export(t.Context(), e))
	}
	trouble := func(name string) string {
		if name != "12.0" {
			return exportOf(t, d, name).Error
		}
		s, err := d.Status(t.Context())
		must(t, err)
		if len(s.Bases) == 0 { // not open yet
			return ""
		}
		return s.Bases[0].Status.Error
	}
	must(t, d.Close())
	b.setAway(errAway)
	d = b.daemon()
	read := map[string]chan []byte{}
	for name, e := range exports {
		c, got := dial(t, e.Path), make(chan []byte, 1)
		read[name] = got
		go func() { got <- readAll(t, c) }()
	}
	for name := range exports {
		eventually(t, name+" says what it waits for", func() bool { return strings.Contains(trouble(name), errAway.Error()) })
	}
	b.setAway(nil)
	for name, got := range read {
		content := want
		if name == "12.2" {
			content = own
		}
		if !bytes.Equal(<-got, content) {
			t.Errorf("%s: reads differ", name)
		}
		if said := trouble(name); said != "" {
			t.Errorf("%s: says %q when its repository answers", name, said)
		}
	}
}
