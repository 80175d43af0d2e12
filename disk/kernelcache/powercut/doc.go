// Package powercut cuts the power of a kernel guest while something is written through caches in mode BACK, those of the
// kernel and our own engine, and looks for what was acknowledged: through the cache, and in the source after a Flush.
package powercut
