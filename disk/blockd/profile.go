package blockd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/internal/durable"
)

// ProfileFile is the boot profile of a base, in its directory.
const ProfileFile = "profile"

const (
	recordFor     = 2 * time.Minute // a boot takes no longer; what is read later is work
	profileLeast  = 4               // chunks that make a profile
	profileMost   = 1 << 16         // chunks; what a boot reads beyond that is found in its time
	publishWithin = time.Minute
)

// profile is the image's boot profile: the one that is here, or that of the repository, which is kept here then.
// No chunks when there is none.
func (b *based) profile(ctx context.Context, index *image.Index) ([]int, error) {
	s := b.spec()
	path := filepath.Join(s.Dir, ProfileFile)
	text, err := os.ReadFile(path)
	if err == nil {
		if chunks, err := image.UnmarshalProfile(text, index); err == nil {
			return chunks, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	repo, err := b.daemon.config.Open(s.Image.Repository)
	if err != nil {
		return nil, err
	}
	text, err = readObject(ctx, repo, image.ProfileName(s.Image.Source), image.MaxProfileFile)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	chunks, err := image.UnmarshalProfile(text, index)
	if err != nil { // a hint that is of no use
		b.daemon.config.Log.Warn("boot profile left out", "image", s.Image.ID, "error", err)
		return nil, nil
	}
	return chunks, durable.WriteFile(path, text, 0o400)
}

func readObject(ctx context.Context, repo repository.Repository, name string, most int64) ([]byte, error) {
	src, err := repo.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if src.Size() > most {
		return nil, fault.Errorf(fault.Corrupt, "object %s: %d bytes are too many", name, src.Size())
	}
	text := make([]byte, src.Size())
	if n, err := src.ReadAt(text, 0); n < len(text) {
		if err == nil || err == io.EOF {
			err = fault.Errorf(fault.Corrupt, "object %s: truncated while it was read", name)
		}
		return nil, err
	}
	return text, nil
}

// recorder notes the first chunks that one export reads.
type recorder struct {
	base  *based
	index *image.Index
	ended sync.Once

	mu     sync.Mutex
	timer  *time.Timer
	chunks []int
	over   bool
}

// newRecorder begins recording, unless there is a profile here or another export is being recorded: nil then.
func (b *based) newRecorder(index *image.Index) *recorder {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.recorder != nil || exists(filepath.Join(b.record.Spec.Dir, ProfileFile)) {
		return nil
	}
	r := &recorder{base: b, index: index}
	r.mu.Lock() // end uses the timer
	defer r.mu.Unlock()
	r.timer = time.AfterFunc(recordFor, r.end)
	b.recorder = r
	return r
}

func (r *recorder) touched(chunk int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over && len(r.chunks) < profileMost {
		r.chunks = append(r.chunks, chunk)
	}
}

// end ends the recording and keeps what is worth it, in the background: DropBase ends that.
func (r *recorder) end() { r.ended.Do(r.keep) }

func (r *recorder) keep() {
	r.mu.Lock()
	r.timer.Stop()
	r.over = true
	r.mu.Unlock()
	b := r.base
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recorder = nil
	if len(r.chunks) < profileLeast {
		return
	}
	ctx, cancel := context.WithTimeout(b.daemon.ctx, publishWithin)
	g := &background{cancel, make(chan struct{})}
	if !b.daemon.spawn(func(context.Context) { r.runPublish(ctx, g) }) {
		cancel()
		return
	}
	b.publishing[g] = true
}

func (r *recorder) runPublish(ctx context.Context, g *background) {
	defer close(g.done)
	defer g.cancel()
	if err := r.publish(ctx); err != nil {
		r.base.daemon.config.Log.Warn("boot profile not kept", "digest", r.index.Digest(), "error", err)
	}
	b := r.base
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.publishing, g)
}

// stopPublishing ends what profiles are kept by, so that nobody writes to the base's directory any more.
func (b *based) stopPublishing() {
	b.mu.Lock()
	running := slices.Collect(maps.Keys(b.publishing))
	b.mu.Unlock()
	for _, g := range running {
		g.cancel()
		<-g.done
	}
}

// publish keeps the profile here and beside the image. The first one that somebody recorded counts for all.
func (r *recorder) publish(ctx context.Context) error {
	b := r.base
	s := b.spec()
	if chunks, err := b.profile(ctx, r.index); err == nil && len(chunks) > 0 {
		return nil
	}
	text, err := image.MarshalProfile(r.index, r.chunks)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(s.Dir, ProfileFile), text, 0o400); err != nil {
		return err
	}
	log := b.daemon.config.Log.With("image", s.Image.ID, "chunks", len(r.chunks))
	repo, err := b.daemon.config.Open(s.Image.Repository)
	if err == nil {
		err = writeObject(ctx, repo, image.ProfileName(s.Image.Source), text)
	}
	switch {
	case err == nil:
		log.Info("boot profile kept with the image")
	case fault.Is(err, fault.Exists), fault.Is(err, fault.Busy):
		log.Info("boot profile kept here: somebody else was first")
	default:
		log.Info("boot profile kept here", "repository", err)
	}
	return nil
}

func writeObject(ctx context.Context, repo repository.Repository, name string, text []byte) error {
	w, err := repo.Create(ctx, name)
	if err != nil {
		return err
	}
	if _, err := w.WriteAt(text, 0); err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := w.Commit(ctx); err != nil {
		return errors.Join(err, w.Abort())
	}
	return nil
}
