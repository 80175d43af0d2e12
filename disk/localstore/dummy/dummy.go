// Package dummy is the local store of a host that has no space for volumes (LS_MAD=dummy).
package dummy

import (
	"context"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
)

// Store implements localstore.Volumes: there are none, and none can be made.
type Store struct{}

var _ localstore.Volumes = Store{}

func refuse(v localstore.VolumeSpec) (localstore.Volume, error) {
	if err := localstore.CheckVolume(v); err != nil {
		return localstore.Volume{}, err
	}
	return localstore.Volume{}, fault.Errorf(fault.Unsupported, "volume %s: this host has LS_MAD dummy, which has no space (file and lvm have)", v.Name)
}

func missing(name string) error {
	if err := localstore.CheckVolumeName(name); err != nil {
		return err
	}
	return fault.Errorf(fault.NotFound, "volume %s is not there: this host has LS_MAD dummy", name)
}

// Provision is fault.Unsupported.
func (Store) Provision(_ context.Context, v localstore.VolumeSpec) (localstore.Volume, error) {
	return refuse(v)
}

// Snapshot is fault.Unsupported.
func (Store) Snapshot(_ context.Context, _ string, v localstore.VolumeSpec) (localstore.Volume, error) {
	return refuse(v)
}

// Rename is fault.NotFound.
func (Store) Rename(_ context.Context, from, _ string) (localstore.Volume, error) {
	return localstore.Volume{}, missing(from)
}

// Find is fault.NotFound.
func (Store) Find(_ context.Context, name string) (localstore.Volume, error) {
	return localstore.Volume{}, missing(name)
}

// Unprovision has nothing to do.
func (Store) Unprovision(_ context.Context, name string) error {
	return localstore.CheckVolumeName(name)
}

// List is empty.
func (Store) List(context.Context) ([]localstore.Volume, error) { return nil, nil }

// Capacity is nothing.
func (Store) Capacity(context.Context) (disk.Capacity, error) { return disk.Capacity{}, nil }
