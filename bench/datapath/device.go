package main

import (
	"context"
	"os"

	"hayloft/disk/cache"
	"hayloft/disk/export"
	"hayloft/disk/export/nbd"
)

// opener makes what is measured out of a file that holds its content. Everything of it must be a hit.
type opener func(ctx context.Context, file string) (device export.Device, closer func() error, err error)

// devices are all that can be measured.
func devices() map[string]opener {
	return map[string]opener{"file": openFile, "base": openBase, "offline": openVolume(cache.Offline), "back": openVolume(cache.Back),
		"thru": openVolume(cache.Through)}
}

func openFile(_ context.Context, path string) (export.Device, func() error, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	device, err := nbd.NewFile(f, false)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return device, f.Close, nil
}
