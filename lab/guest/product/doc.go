// Package product holds tests that lead a whole Hayloft, server and agent, through the storage of a kernel guest: logical volumes,
// the kernel's cache, its NFS and its iSCSI. They run inside (labtest.Guest).
package product
