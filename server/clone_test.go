package server_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// Clones of clones have the content, in the same datastore and in another one; what they are is shown.
func TestImageClones(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	yes, no := true, false
	first := s.imported(c, "first", "CACHE_MODE=AROUND")
	far := filepath.Join(s.dir, "far")
	if err := os.Mkdir(far, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateDatastore(t.Context(), "NAME=far\nBASE_PATH=\""+far+"\"", ""); err != nil {
		t.Fatal(err)
	}
	content := func(i api.Image) []byte {
		t.Helper()
		ds, err := c.Datastore(t.Context(), strconv.Itoa(i.DatastoreID))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(ds.BasePath, i.Source))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	clone := func(of string, how api.CloneImage) api.Image {
		t.Helper()
		id, err := c.CloneImage(t.Context(), of, how)
		if err != nil {
			t.Fatal(err)
		}
		i := s.imageIs(c, id, cloud.ImageStateReady)
		if i.Digest != first.Digest || i.Size != first.Size || i.Format != "raw" || i.ClonedFrom == nil || i.ClonedFrom.Kind == "" {
			t.Errorf("%s: %+v of %+v", how.Name, i.Image, first.Image)
		}
		if !bytes.Equal(content(i), content(first)) {
			t.Errorf("%s: another content", how.Name)
		}
		if mode, _ := i.Template.Get("CACHE_MODE"); mode != "AROUND" {
			t.Errorf("%s: CACHE_MODE %q", how.Name, mode)
		}
		return i
	}
	second := clone("first", api.CloneImage{Name: "second"})
	third := clone("second", api.CloneImage{Name: "third", Datastore: "far", Persistent: &yes})
	if third.ClonedFrom.ImageID != second.ID || third.ClonedFrom.Kind != "copy" || !third.Persistent || second.Persistent {
		t.Errorf("third: %+v", third.Image)
	}
	clone("third", api.CloneImage{Name: "fourth", Persistent: &no}) // of a persistent one: read anew
	clone("third", api.CloneImage{Name: "fifth", Datastore: "default"})

	for how, want := range map[api.CloneImage]string{
		{Name: ""}:       "needs a name",
		{Name: "second"}: "second",
	} {
		if _, err := c.CloneImage(t.Context(), "first", how); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("clone as %q: %v", how.Name, err)
		}
	}
	if _, err := c.CloneImage(t.Context(), "nothing", api.CloneImage{Name: "x"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("clone of nothing: %v", err)
	}
	if err := c.FlattenImage(t.Context(), "second"); err != nil {
		t.Error(err)
	}
	s.until("second is independent", func(ctx context.Context) bool {
		i, err := c.Image(ctx, "second")
		return err == nil && !i.Flatten && i.Error == ""
	})
	if err := c.Delete(t.Context(), cloud.KindImage, "first"); err != nil {
		t.Errorf("clones by files depend on nobody: %v", err)
	}
}
