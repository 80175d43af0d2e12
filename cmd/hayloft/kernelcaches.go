package main

import (
	"log/slog"
	"maps"
	"slices"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/bcache"
	"hayloft/disk/kernelcache/dmcache"
	"hayloft/disk/kernelcache/flashcache"
)

// kernelCaches are the drivers of LC_MAD that are the kernel's.
var kernelCaches = map[string]func(instance string, log *slog.Logger) (kernelcache.Driver, error){
	"dm-cache": func(instance string, log *slog.Logger) (kernelcache.Driver, error) {
		return dmcache.New(dmcache.Config{Instance: instance, Log: log})
	},
	"bcache": func(instance string, log *slog.Logger) (kernelcache.Driver, error) {
		return bcache.New(bcache.Config{Instance: instance, Log: log})
	},
	"flashcache": func(instance string, log *slog.Logger) (kernelcache.Driver, error) {
		return flashcache.New(flashcache.Config{Instance: instance, Log: log})
	},
}

func kernelCacheNames() []string { return slices.Sorted(maps.Keys(kernelCaches)) }
