//go:build deps

// Package deps names modules that rooms under construction need.
package deps

import (
	_ "github.com/hanwen/go-fuse/v2/fs"
)
