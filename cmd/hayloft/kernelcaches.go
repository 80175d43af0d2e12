package main

import (
	"log/slog"
	"maps"
	"slices"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/dmcache"
)

// kernelCaches are the drivers of LC_MAD that are the kernel's.
var kernelCaches = map[string]func(instance string, log *slog.Logger) (kernelcache.Driver, error){
	"dm-cache": func(instance string, log *slog.Logger) (kernelcache.Driver, error) {
		return dmcache.New(dmcache.Config{Instance: instance, Log: log})
	},
}

func kernelCacheNames() []string { return slices.Sorted(maps.Keys(kernelCaches)) }
