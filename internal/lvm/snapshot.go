package lvm

// exceptionBytes is what a copy-on-write snapshot notes for one copied chunk (Linux, drivers/md/dm-snap-persistent.c, struct disk_exception).
const exceptionBytes = 16

// SnapshotSpace is what a copy-on-write snapshot of a volume of size bytes needs so that it never overflows, whatever is written to
// either of the two: a header, each chunk once, a chunk of notes for as many chunks as it has room for and one more as the end, and a
// 64th for kernels that lose chunks in a crash. It is lvm2's own rule (lib/metadata/snapshot_manip.c, _cow_max_size); LVM
// reduces what is more than it takes for the most.
func SnapshotSpace(size, chunk int64) int64 {
	chunks, noted := (size+chunk-1)/chunk, chunk/exceptionBytes
	all := 1 + chunks + (chunks+noted)/noted
	return (all + (all+63)/64) * chunk
}
