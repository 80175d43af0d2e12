// Package pki is the cluster's own small certificate authority. It vouches for servers (under the fixed
// name hayloft-server and whatever else they are called), for hosts ("host:NAME") and for administrators
// ("admin:NAME"), hands out one-time tokens for enrolling, and says who is at the other end of a gRPC call.
package pki
