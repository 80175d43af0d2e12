package main

import (
	"log/slog"
	"maps"
	"slices"

	"hayloft/disk/kernelcache"
)

// kernelCaches are the drivers of LC_MAD that are the kernel's.
var kernelCaches = map[string]func(instance string, log *slog.Logger) (kernelcache.Driver, error){}

func kernelCacheNames() []string { return slices.Sorted(maps.Keys(kernelCaches)) }
