package qcow2

// FullSize is how many bytes an overlay of size bytes takes up at most, when all of it has been written: what a block
// device that it is made in must have. It counts what Write makes and QEMU adds to it (docs/interop/qcow2.txt): an L2
// table for each entry of the L1 table, the data, and the reference counts of all that. Snapshots inside come on top.
func FullSize(size int64) int64 {
	const (
		counted  = clusterSize / 2 // clusters that one block of 16-bit reference counts counts
		perTable = clusterSize / 8 // blocks that one cluster of the reference table names
	)
	l1Entries := divideUp(size, l1Reach)
	fixed := 1 + divideUp(l1Entries*8, clusterSize) + l1Entries + divideUp(size, clusterSize) // header, L1, L2, data
	clusters, before := fixed, int64(-1)
	for clusters != before {
		before = clusters
		blocks := divideUp(clusters, counted)
		table := divideUp(blocks, perTable)
		clusters = fixed + blocks + table
		if table > 1 {
			clusters += table // the former, smaller table, while the file grows into a larger one
		}
	}
	return clusters * clusterSize
}

func divideUp(n, unit int64) int64 { return (n + unit - 1) / unit }
