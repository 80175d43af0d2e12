package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/server/inventory"
	"hayloft/store"
)

// importers take in the images that are LOCKED and have a path, and delete the content of those that
// are being deleted. A server that comes up starts over with what it finds half-way.
type importers struct {
	c     *Controller
	slots chan struct{}
	group sync.WaitGroup
	mu    sync.Mutex
	busy  map[int]context.CancelFunc
}

func newImporters(c *Controller) *importers {
	return &importers{c: c, slots: make(chan struct{}, max(1, c.Imports)), busy: map[int]context.CancelFunc{}}
}

func (m *importers) wait() {
	m.mu.Lock()
	for _, cancel := range m.busy {
		cancel()
	}
	m.mu.Unlock()
	m.group.Wait()
}

// start begins what has not begun yet, and stops imports of images that are to be deleted.
func (m *importers) start(ctx context.Context) {
	for _, img := range m.c.inv.AllImages() {
		m.mu.Lock()
		cancel, busy := m.busy[img.ID]
		m.mu.Unlock()
		switch {
		case img.State == cloud.ImageStateLocked && img.SavedFrom == nil && !busy:
			m.run(ctx, img, m.take)
		case img.State == cloud.ImageStateLocked && img.SavedFrom != nil && !busy && m.abandoned(img):
			m.run(ctx, img, m.abandon)
		case img.State == cloud.ImageStateReady && img.Flatten && !busy:
			m.run(ctx, img, m.flatten)
		case img.State == cloud.ImageStateDelete && busy:
			cancel() // the import ends, which wakes the controller, and then the deletion starts
		case img.State == cloud.ImageStateDelete:
			m.run(ctx, img, m.remove)
		}
	}
}

func (m *importers) run(ctx context.Context, img cloud.Image, work func(context.Context, cloud.Image) error) {
	ctx, cancel := context.WithCancel(ctx)
	m.mu.Lock()
	m.busy[img.ID] = cancel
	m.mu.Unlock()
	m.group.Go(func() {
		defer func() {
			cancel()
			m.mu.Lock()
			delete(m.busy, img.ID)
			m.mu.Unlock()
			m.c.inv.Touch(inventory.Change{Kind: cloud.KindImage, ID: img.ID})
		}()
		select {
		case m.slots <- struct{}{}:
			defer func() { <-m.slots }()
		case <-ctx.Done():
			return
		}
		if err := work(ctx, img); err != nil && ctx.Err() == nil {
			m.c.log.Error("image work failed", "image", img.ID, "error", err)
		}
	})
}

func (m *importers) open(img cloud.Image) (repository.Repository, error) {
	ds, err := m.c.inv.Datastore(img.DatastoreID)
	if err != nil {
		return nil, err
	}
	return m.c.Open(RepositoryOf(ds))
}

// sweep removes from all datastores what servers and agents that died left unfinished.
func (m *importers) sweep(ctx context.Context) {
	for _, ds := range m.c.inv.AllDatastores() {
		repo, err := m.c.Open(RepositoryOf(ds))
		if err == nil {
			if sweeper, ok := repo.(repository.Sweeper); ok {
				err = sweeper.Sweep(ctx, "")
			}
		}
		if err != nil && ctx.Err() == nil {
			m.c.log.Warn("datastore not swept", "datastore", ds.ID, "error", err)
		}
	}
}

// take imports one image and records the outcome.
func (m *importers) take(ctx context.Context, img cloud.Image) error {
	defer m.c.progress.dropImage(img.ID)
	// The mirror may be behind an import that has just ended: never touch the content of a READY image.
	if now, _, err := m.c.inv.Images.Get(ctx, img.ID); err != nil || now.State != cloud.ImageStateLocked {
		return err
	}
	if img.ClonedFrom != nil {
		m.c.log.Info("image clone", "image", img.ID, "of", img.ClonedFrom.ImageID)
	} else {
		m.c.log.Info("image import", "image", img.ID, "from", img.Path)
	}
	info, err := m.content(ctx, img)
	if err != nil && ctx.Err() != nil {
		return err // stopped, not failed: it starts over, or is deleted
	}
	_, revision, recorded := m.c.inv.Images.Update(ctx, img.ID, func(now *cloud.Image) error {
		if now.State != cloud.ImageStateLocked {
			return fault.Errorf(fault.WrongState, "image %d is %v", now.ID, now.State)
		}
		if err != nil {
			now.State, now.Error, now.ErrorClass = cloud.ImageStateError, err.Error(), fault.ClassOf(err).String()
			return nil
		}
		now.State, now.Format, now.Digest = cloud.ImageStateReady, string(info.Format), info.Digest
		now.Size, now.ObjectSize, now.StoredBytes, now.IndexIn = info.Size, info.ObjectSize, info.StoredBytes, info.indexIn
		if now.ClonedFrom != nil {
			now.ClonedFrom = &cloud.ClonedFrom{ImageID: now.ClonedFrom.ImageID, Kind: string(info.clone)}
		}
		return nil
	}, m.c.fence)
	if err == nil && recorded == nil {
		m.c.log.Info("image READY", "image", img.ID, "digest", info.Digest)
	}
	if err := errors.Join(err, recorded); err != nil {
		return err
	}
	return m.c.inv.WaitFor(ctx, revision)
}

// made is what came of an image's object.
type made struct {
	image.Info
	clone   repository.CloneKind // how it was cloned
	indexIn int                  // datastore of its index; 0: its own
}

// content makes the image's object.
func (m *importers) content(ctx context.Context, img cloud.Image) (done made, err error) {
	repo, err := m.open(img)
	if err != nil {
		return done, err
	}
	if img.Registered {
		return m.register(ctx, repo, img)
	}
	// Half of an earlier attempt may be there.
	for _, name := range []string{image.ProfileName(img.Source), image.IndexName(img.Source), img.Source} {
		if err := repo.Delete(ctx, name); err != nil && !fault.Is(err, fault.NotFound) {
			return done, err
		}
	}
	switch {
	case img.ClonedFrom != nil:
		return m.clone(ctx, repo, img)
	case img.Path == "":
		done.Info, err = image.Create(ctx, image.CreateOptions{Size: img.Size, To: repo, Name: img.Source})
		return done, err
	}
	done.Info, err = image.Import(ctx, image.ImportOptions{
		Source: img.Path, Type: image.Type(img.Type.String()), Format: image.Format(img.Format), ExpectedDigest: img.Expect,
		To: repo, Name: img.Source, Runner: m.c.Runner,
		Report: func(done, total int64) { m.c.progress.setImage(img.ID, done, total) },
	})
	return done, err
}

// abandoned reports whether no machine has the order any more to save a disk as this image.
func (m *importers) abandoned(img cloud.Image) bool {
	vm, err := m.c.inv.VM(img.SavedFrom.VM)
	return err != nil || vm.State == cloud.StateDone || !slices.ContainsFunc(vm.Orders.Saves, func(s cloud.SaveDisk) bool { return s.Operation == img.SavedFrom.Operation })
}

func (m *importers) abandon(ctx context.Context, img cloud.Image) error {
	_, _, err := m.c.inv.Images.Update(ctx, img.ID, func(now *cloud.Image) error {
		if now.State != cloud.ImageStateLocked {
			return fault.Errorf(fault.WrongState, "image %d is %v", now.ID, now.State)
		}
		now.State, now.Error = cloud.ImageStateError, fmt.Sprintf("vm %d went away before its disk was saved", now.SavedFrom.VM)
		return nil
	}, m.c.fence)
	if fault.Is(err, fault.WrongState) {
		return nil
	}
	return err
}

// remove deletes an image whose deletion has been decided, content first.
func (m *importers) remove(ctx context.Context, img cloud.Image) error {
	now, _, err := m.c.inv.Images.Get(ctx, img.ID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil || now.State != cloud.ImageStateDelete {
		return err
	}
	if err := m.removeObjects(ctx, img); err != nil {
		if ctx.Err() != nil {
			return err
		}
		if !isForgettable(img, err) {
			_, _, recorded := m.c.inv.Images.Update(ctx, img.ID, func(now *cloud.Image) error {
				now.State, now.Error, now.ErrorClass = cloud.ImageStateError, "deletion: "+err.Error(), fault.ClassOf(err).String()
				return nil
			}, m.c.fence)
			return errors.Join(recorded, err)
		}
		m.c.log.Warn("image that never had content is forgotten, its datastore cannot be looked at", "image", img.ID, "error", err)
	}
	if err := m.dropIndex(ctx, img); err != nil {
		return err
	}
	_, revision, err := m.c.inv.Images.Get(ctx, img.ID)
	if err != nil {
		return err
	}
	ops := []store.Op{m.c.inv.Images.DelOp(img.ID), store.Del(inventory.NameKey(cloud.KindImage, img.UID, img.Name))}
	wishes := m.c.inv.DropPrefetches(func(p cloud.Prefetch) bool { return p.ImageID == img.ID })
	for len(wishes) > store.MaxOps-len(ops) {
		if _, err := m.c.inv.Store.Txn(ctx, []store.Cond{m.c.fence}, wishes[:store.MaxOps]); err != nil {
			return err
		}
		wishes = wishes[store.MaxOps:]
	}
	ops = append(ops, wishes...)
	revision, err = m.c.inv.Store.Txn(ctx, []store.Cond{m.c.fence, m.c.inv.Images.Cond(img.ID, revision)}, ops)
	if err != nil {
		return err
	}
	m.c.log.Info("image deleted", "image", img.ID)
	return m.c.inv.WaitFor(ctx, revision)
}

func (m *importers) removeObjects(ctx context.Context, img cloud.Image) error {
	repo, err := m.open(img)
	if err != nil {
		return err
	}
	for _, name := range objects(img) {
		err := repo.Delete(ctx, name)
		if img.Registered && (fault.Is(err, fault.Unsupported) || fault.Is(err, fault.Permission)) {
			continue // a repository that is only read from has nothing of Hayloft's
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	// What never became an object may have been begun, by a writer that died or lost its storage.
	if sweeper, ok := repo.(repository.Sweeper); ok && img.Digest == "" && !img.Registered {
		return sweeper.Sweep(ctx, img.Source)
	}
	return nil
}

// isForgettable says whether an image whose objects cannot be removed can go nevertheless: it never had any that were whole, and
// its storage does not let us in or is not there. What is unfinished is swept when a server begins.
func isForgettable(img cloud.Image, err error) bool {
	switch fault.ClassOf(err) {
	case fault.Unavailable, fault.Permission, fault.Invalid, fault.Unsupported:
		return img.Digest == ""
	}
	return false
}
