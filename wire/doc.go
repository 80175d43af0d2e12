// Package wire is the protocol between server and agents: generated from fleet.proto.
package wire

//go:generate sh generate.sh
