// Package proof has tests that run in the kernel guest and show that it has what other tests rely on: the programs,
// the kernel modules, and devices that appear where they should.
package proof
