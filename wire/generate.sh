#!/bin/sh
# Generates fleet.pb.go and fleet_grpc.pb.go with the plugins that go.mod pins.
set -eu
exec protoc --plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
	--plugin=protoc-gen-go-grpc="$(go tool -n protoc-gen-go-grpc)" \
	--go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative fleet.proto
