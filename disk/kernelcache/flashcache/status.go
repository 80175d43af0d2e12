package flashcache

import (
	"context"
	"regexp"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
)

func (k kernel) Status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	// Its counts are in what it prints as its table.
	text, err := k.DM.Table(ctx, k.Name(s, ""))
	if err != nil {
		return kernelcache.Status{}, err
	}
	return parseTable(text)
}

var (
	modeLine   = regexp.MustCompile(`cache mode\((WRITE_[A-Z]+)\)`)
	blockLine  = regexp.MustCompile(`(?:data )?block size\((\d{1,6})K\)`)
	blocksLine = regexp.MustCompile(`total blocks\((\d{1,15})\), cached blocks\((\d{1,15})\)`)
	dirtyLine  = regexp.MustCompile(`dirty blocks\((\d{1,15})\)`)
)

// parseTable reads what the target prints as its table.
func parseTable(text string) (s kernelcache.Status, err error) {
	mode, block, blocks, dirty := modeLine.FindStringSubmatch(text), blockLine.FindStringSubmatch(text), blocksLine.FindStringSubmatch(text), dirtyLine.FindStringSubmatch(text)
	if mode == nil || block == nil || blocks == nil || modeNames[mode[1]] == "" || dirty == nil && modeNames[mode[1]] == cache.Back {
		return s, fault.Errorf(fault.Corrupt, "table %q", text)
	}
	number := func(text string) int64 { n, _ := strconv.ParseInt(text, 10, 64); return n } // its expression bounds it
	unit := number(block[1]) << 10
	s = kernelcache.Status{Mode: modeNames[mode[1]], Size: unit * number(blocks[1]), Cached: unit * number(blocks[2])}
	if dirty != nil {
		s.Dirty = unit * number(dirty[1])
	}
	if s.Cached > s.Size || s.Dirty > s.Cached {
		return s, fault.Errorf(fault.Corrupt, "table %q", text)
	}
	return s, nil
}
