package disk

import "context"

// Live is a disk of a running machine as it was at one moment, shown by its hypervisor: an NBD export on a unix socket.
type Live struct {
	Socket, Export string
	Own            int // the deepest layer of qemu:allocation-depth that is the machine's own
	// Check says whether what was read so far is right.
	Check func(ctx context.Context) error
}

// LiveSaver is a Way that can save a disk while its machine runs.
type LiveSaver interface {
	// SaveLive is SaveAs of what live shows.
	SaveLive(ctx context.Context, machine int, dir string, spec Spec, live Live, to Repository, name string, report func(Progress)) (Saved, error)
}
