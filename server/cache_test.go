package server_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/path"
	"hayloft/image"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// fetching is a way whose prefetches the test answers: progress comes in, ends go out.
type fetching struct {
	disk.Way
	begun chan string
	end   chan error
}

func (f fetching) Prefetch(ctx context.Context, i disk.Image, _ int64, report func(disk.Progress)) error {
	report(disk.Progress{Done: 3, Total: 12})
	select {
	case f.begun <- i.Name:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-f.end:
		report(disk.Progress{Done: 12, Total: 12})
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f fetching) Bases(context.Context) ([]disk.Base, error) {
	return []disk.Base{{Digest: "blake3:whole", Present: 9, Total: 9, Complete: true}, {Digest: "blake3:part", Present: 1, Total: 4}}, nil
}

// imported makes an image from a file of some random bytes and waits until it is ready.
func (s *site) imported(c *client.Client, name, more string) api.Image {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), name+".img")
	content := make([]byte, 1<<20)
	_, _ = rand.Read(content[:300<<10])
	if err := os.WriteFile(file, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	id, err := c.CreateImage(s.t.Context(), "NAME="+name+"\nFORMAT=raw\nPATH=\""+file+"\"\n"+more, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return s.imageIs(c, id, cloud.ImageStateReady)
}

func (s *site) imageIs(c *client.Client, id int, state cloud.ImageState) (i api.Image) {
	s.t.Helper()
	s.until("image "+strconv.Itoa(id)+" is "+state.String(), func(ctx context.Context) (ok bool) {
		var err error
		i, err = c.Image(ctx, strconv.Itoa(id))
		return err == nil && i.State == state
	})
	return i
}

func TestPrefetchGoesToItsHosts(t *testing.T) {
	s := newSite(t)
	ways := fetching{begun: make(chan string), end: make(chan error)}
	s.way = func(w disk.Way) disk.Way {
		ways.Way = w
		return ways
	}
	c := s.server("one")
	s.host(c, "node1", "one")
	img := s.imported(c, "golden", "")
	is := func(what string, ok func(api.Prefetched) bool) {
		t.Helper()
		s.until(what, func(ctx context.Context) bool {
			i, err := c.Image(ctx, "golden")
			return err == nil && len(i.Prefetches) == 1 && ok(i.Prefetches[0])
		})
	}
	ask := func() {
		t.Helper()
		if err := c.Prefetch(t.Context(), "golden", api.Prefetch{Hosts: []string{"node1"}}); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	if name := <-ways.begun; name != "golden" {
		t.Errorf("brought %s", name)
	}
	is("the progress is told", func(p api.Prefetched) bool {
		return p.State == cloud.PrefetchWanted && p.Done == 3 && p.Total == 12 && p.HostName == "node1"
	})
	// An agent that begins again brings it again: it is still wanted.
	s.stop("node1")
	s.host(c, "node1", "one")
	<-ways.begun
	ways.end <- nil
	is("it is there", func(p api.Prefetched) bool { return p.State == cloud.PrefetchDone && p.Done == 12 && p.Error == "" })
	ask()
	<-ways.begun
	ways.end <- fault.Errorf(fault.OutOfSpace, "LS_MAX is reached")
	is("it has failed", func(p api.Prefetched) bool {
		return p.State == cloud.PrefetchFailed && p.Error == "LS_MAX is reached" && p.Class == "out-of-space" && p.Serial == 2
	})
	host, err := c.Host(t.Context(), "node1")
	if err != nil || len(host.Held) != 2 || len(host.Partial) != 1 || host.Partial[0] != (cloud.PartialBase{Digest: "blake3:part", Present: 1, Total: 4}) {
		t.Errorf("host: held %+v, partial %+v, %v", host.Held, host.Partial, err)
	}
	for what, request := range map[string]api.Prefetch{"neither": {}, "both": {All: true, Hosts: []string{"node1"}}} {
		if err := c.Prefetch(t.Context(), "golden", request); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Prefetch(t.Context(), "golden", api.Prefetch{All: true}); err != nil {
		t.Fatal(err)
	}
	<-ways.begun
	if err := c.Delete(t.Context(), cloud.KindImage, "golden"); err != nil { // which ends it
		t.Fatal(err)
	}
	s.until("the image is gone", func(ctx context.Context) bool {
		_, err := c.Image(ctx, strconv.Itoa(img.ID))
		return fault.Is(err, fault.NotFound)
	})
	if records, _, err := s.store.List(t.Context(), cloud.KindPrefetch+"/"); err != nil || len(records) != 0 {
		t.Errorf("left of prefetches: %v, %v", records, err)
	}
}

// An object that lies in a datastore with its index is registered as it is, and is still there when the image is not.
func TestImageThatIsThereAlready(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	dir := filepath.Join(s.dir, "golden")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	repo, err := path.New(disk.Repository{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "x.img")
	if err := os.WriteFile(file, []byte(strings.Repeat("goldhay\n", 64_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := image.Import(t.Context(), image.ImportOptions{Source: file, Type: image.OS, Format: image.Raw, To: repo, Name: "deb.img"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateDatastore(t.Context(), "NAME=golden\nBASE_PATH=\""+dir+"\"", ""); err != nil {
		t.Fatal(err)
	}
	make := func(text string) int {
		t.Helper()
		id, err := c.CreateImage(t.Context(), text, "golden")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	id := make("NAME=deb\nSOURCE=deb.img\nDIGEST=\"" + info.Digest + "\"")
	img := s.imageIs(c, id, cloud.ImageStateReady)
	if img.Digest != info.Digest || img.Size != info.Size || img.ObjectSize != info.Size || img.Format != "raw" || img.StoredBytes == 0 || img.Source != "deb.img" {
		t.Errorf("registered: %+v, want %+v", img.Image, info)
	}
	for text, want := range map[string]string{
		"NAME=no\nSOURCE=other.img":                         "other.img",
		"NAME=wrong\nSOURCE=deb2.img\nDIGEST=\"blake3:00\"": "digest is",
	} {
		if err := os.Link(filepath.Join(dir, "deb.img"), filepath.Join(dir, "deb2.img")); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, image.IndexName("deb.img")), filepath.Join(dir, image.IndexName("deb2.img"))); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		if bad := s.imageIs(c, make(text), cloud.ImageStateError); !strings.Contains(bad.Error, want) {
			t.Errorf("%s: %q, want %q", text, bad.Error, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, image.ProfileName("deb.img")), []byte("chunks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), cloud.KindImage, "deb"); err != nil {
		t.Fatal(err)
	}
	s.until("the image is gone", func(ctx context.Context) bool {
		_, err := c.Image(ctx, strconv.Itoa(id))
		return fault.Is(err, fault.NotFound)
	})
	for name, there := range map[string]bool{"deb.img": true, image.IndexName("deb.img"): true, image.ProfileName("deb.img"): false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != there {
			t.Errorf("after the deletion, %s: %v", name, err)
		}
	}
}

// What has no index beside it is read through once; its index goes with the image.
func TestImageWithoutIndex(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	dir := filepath.Join(s.dir, "plain")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "deb.img"), []byte(strings.Repeat("goldhay\n", 64_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateDatastore(t.Context(), "NAME=plain\nBASE_PATH=\""+dir+"\"", ""); err != nil {
		t.Fatal(err)
	}
	id, err := c.CreateImage(t.Context(), "NAME=deb\nSOURCE=deb.img", "plain")
	if err != nil {
		t.Fatal(err)
	}
	img := s.imageIs(c, id, cloud.ImageStateReady)
	ds, err := c.Datastore(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(ds.BasePath, image.IndexName("image-"+strconv.Itoa(id)))
	if _, err := os.Stat(index); err != nil || img.IndexIn != ds.ID || img.Digest == "" || img.Size != 512_000 {
		t.Errorf("%v, %+v", err, img.Image)
	}
	clone, err := c.CloneImage(t.Context(), "deb", api.CloneImage{Name: "copy", Datastore: "default"})
	if err != nil {
		t.Fatal(err)
	}
	if i := s.imageIs(c, clone, cloud.ImageStateReady); i.Digest != img.Digest || i.IndexIn != 0 {
		t.Errorf("clone %+v", i.Image)
	}
	wrong, err := c.CreateImage(t.Context(), "NAME=wrong\nSOURCE=deb2.img\nDIGEST=\"blake3:00\"", "plain")
	if err != nil {
		t.Fatal(err)
	}
	s.imageIs(c, wrong, cloud.ImageStateError)
	if err := c.Delete(t.Context(), cloud.KindImage, "deb"); err != nil {
		t.Fatal(err)
	}
	s.until("the index is gone", func(context.Context) bool {
		_, err := os.Stat(index)
		return os.IsNotExist(err)
	})
	if _, err := os.Stat(filepath.Join(dir, "deb.img")); err != nil {
		t.Error(err)
	}
}

// Deleting an image takes all of it along; a persistent one tells who owns it, and can be released.
func TestOwnedImage(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	img := s.imported(c, "data", "PERSISTENT=YES")
	ds, err := c.Datastore(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := path.New(disk.Repository{ID: ds.ID, Path: ds.BasePath})
	if err != nil {
		t.Fatal(err)
	}
	owner := repository.Owner{Host: "lost", Machine: 77}
	if _, err := repo.Own(t.Context(), img.Source, owner, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	mark, err := repo.Marked(t.Context(), img.Source)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.SetUndrained(t.Context(), img.Source, owner, mark.Generation, true); err != nil {
		t.Fatal(err)
	}
	shown, err := c.Image(t.Context(), "data")
	if err != nil || shown.Owner == nil || *shown.Owner != (api.Owner{Host: "lost", Machine: 77, Generation: mark.Generation, Undrained: true}) {
		t.Errorf("shown: %+v, %v", shown.Owner, err)
	}
	err = c.ReleaseImage(t.Context(), "data", false)
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "host lost") || !strings.Contains(err.Error(), "machine 77") {
		t.Errorf("with undrained writes: %v", err)
	}
	if err := c.ReleaseImage(t.Context(), "data", true); err != nil {
		t.Fatal(err)
	}
	if shown, err = c.Image(t.Context(), "data"); err != nil || shown.Owner != nil {
		t.Errorf("after the release: %+v, %v", shown.Owner, err)
	}
	if err := os.WriteFile(filepath.Join(ds.BasePath, image.ProfileName(img.Source)), []byte("chunks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), cloud.KindImage, "data"); err != nil {
		t.Fatal(err)
	}
	s.until("nothing is left of the image", func(context.Context) bool {
		left, err := filepath.Glob(filepath.Join(ds.BasePath, img.Source+"*"))
		return err == nil && len(left) == 0
	})
}

// What a web server has is registered in the same way, and nothing else can be done with it.
func TestImageOfAWebServer(t *testing.T) {
	s := newSite(t)
	c := s.server("one")
	dir := t.TempDir()
	repo, err := path.New(disk.Repository{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "x.img")
	if err := os.WriteFile(file, []byte(strings.Repeat("goldhay\n", 64_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := image.Import(t.Context(), image.ImportOptions{Source: file, Type: image.OS, Format: image.Raw, To: repo, Name: "deb.img"})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer web.Close()
	if _, err := c.CreateDatastore(t.Context(), "NAME=web\nDS_MAD=http\nBASE_PATH=\""+web.URL+"\"", ""); err != nil {
		t.Fatal(err)
	}
	id, err := c.CreateImage(t.Context(), "NAME=deb\nSOURCE=deb.img", "web")
	if err != nil {
		t.Fatal(err)
	}
	if img := s.imageIs(c, id, cloud.ImageStateReady); img.Digest != info.Digest || img.Size != info.Size {
		t.Errorf("registered: %+v, want %+v", img.Image, info)
	}
	if _, err := c.CreateImage(t.Context(), "NAME=x\nPATH=\""+file+"\"", "web"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("import into a web server: %v", err)
	}
	if err := c.Delete(t.Context(), cloud.KindImage, "deb"); err != nil {
		t.Fatal(err)
	}
	s.until("the image is gone", func(ctx context.Context) bool {
		_, err := c.Image(ctx, strconv.Itoa(id))
		return fault.Is(err, fault.NotFound)
	})
	if _, err := os.Stat(filepath.Join(dir, "deb.img")); err != nil {
		t.Error(err)
	}
}
