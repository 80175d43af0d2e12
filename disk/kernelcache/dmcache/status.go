package dmcache

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
)

func (k kernel) Status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	text, err := k.DM.Status(ctx, k.Name(s, ""))
	if err != nil {
		return kernelcache.Status{}, err
	}
	return parseStatus(text)
}

// parseStatus reads a status line of the target, as cache.rst describes it:
//
//	<start> <length> cache <metadata block size> <used>/<total metadata blocks> <cache block size> <used>/<total cache blocks>
//	<read hits> <read misses> <write hits> <write misses> <demotions> <promotions> <dirty> <#features> <feature>* ...
//
// Cache block sizes are in sectors.
func parseStatus(text string) (s kernelcache.Status, err error) {
	bad := func() (kernelcache.Status, error) {
		return kernelcache.Status{}, fault.Errorf(fault.Corrupt, "status %q", text)
	}
	fields := strings.Fields(text)
	if len(fields) >= 4 && fields[2] == "cache" && strings.EqualFold(fields[3], "Fail") {
		return s, fault.Errorf(fault.Corrupt, "the kernel has given the cache up: its metadata cannot be read or written")
	}
	if len(fields) < 15 || fields[2] != "cache" {
		return bad()
	}
	block, err := strconv.ParseInt(fields[5], 10, 64)
	if err != nil {
		return bad()
	}
	block *= 512
	var used, total int64
	if n, err := fmt.Sscanf(fields[6], "%d/%d", &used, &total); n != 2 || err != nil {
		return bad()
	}
	dirty, err := strconv.ParseInt(fields[13], 10, 64)
	if err != nil {
		return bad()
	}
	count, err := strconv.Atoi(fields[14])
	if err != nil || count < 0 || len(fields) < 15+count {
		return bad()
	}
	s = kernelcache.Status{Mode: cache.Through, Cached: used * block, Dirty: dirty * block, Size: total * block}
	for _, feature := range fields[15 : 15+count] {
		if feature == "writeback" {
			s.Mode = cache.Back
		}
	}
	if strings.Contains(text, " needs_check") {
		return s, fault.Errorf(fault.Corrupt, "the cache's metadata needs a check (cache_check)")
	}
	return s, nil
}
