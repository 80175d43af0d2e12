package main

import (
	"maps"
	"slices"

	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/bcache"
	"hayloft/disk/kernelcache/dmcache"
	"hayloft/disk/kernelcache/flashcache"
)

// kernelCaches are the drivers of LC_MAD that are the kernel's.
var kernelCaches = map[string]func(kernelcache.Config) (kernelcache.Driver, error){
	"dm-cache":   dmcache.New,
	"bcache":     bcache.New,
	"flashcache": flashcache.New,
}

func kernelCacheNames() []string { return slices.Sorted(maps.Keys(kernelCaches)) }
