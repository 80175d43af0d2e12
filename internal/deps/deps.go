//go:build deps

// Package deps holds modules in go.mod until the rooms that use them are there.
package deps

import (
	_ "github.com/minio/minio-go/v7"
	_ "github.com/pkg/sftp"
	_ "golang.org/x/crypto/ssh"
	_ "golang.org/x/crypto/ssh/agent"
	_ "golang.org/x/crypto/ssh/knownhosts"
)
