package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

const mebi = 1 << 20

// bytesText is a size for people, in binary units: 512M, 1.5G.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + "B"
	}
	value, unit := float64(n), -1
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if value >= 100 || value == float64(int64(value)) {
		return fmt.Sprintf("%.0f%c", value, units[unit])
	}
	return fmt.Sprintf("%.1f%c", value, units[unit])
}

func megabytesText(n int) string { return bytesText(int64(n) * mebi) }

// megabytes reads a size such as 512, 512M or 2G; a bare number is in MB, as everywhere in templates.
func megabytes(text string) (int, error) {
	number, factor := strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(text)), "B"), 1.0
	for suffix, f := range map[string]float64{"M": 1, "G": 1 << 10, "T": 1 << 20} {
		if rest, ok := strings.CutSuffix(number, suffix); ok {
			number, factor = rest, f
			break
		}
	}
	value, err := strconv.ParseFloat(number, 64)
	if mb := value * factor; err == nil && mb >= 1 && mb <= 1<<40 {
		return int(mb), nil
	}
	return 0, fault.Errorf(fault.Invalid, "size %q: want MB, or a number with M, G or T", text)
}

// ageText is the TIME column of onevm: days, hours, minutes.
func ageText(d time.Duration) string {
	minutes := int(max(0, d) / time.Minute)
	return fmt.Sprintf("%dd %02dh%02d", minutes/(24*60), minutes/60%24, minutes%60)
}

// momentText is a Unix time in seconds, in local time; 0 is none.
func momentText(seconds int64) string {
	if seconds == 0 {
		return ""
	}
	return time.Unix(seconds, 0).Format("2006-01-02 15:04:05")
}

// lapseText is how long something took, short.
func lapseText(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// shareText is "used / all (percent)".
func shareText(used, all float64, text func(float64) string) string {
	if all <= 0 {
		return text(used) + " / -"
	}
	return fmt.Sprintf("%s / %s (%.0f%%)", text(used), text(all), 100*used/all)
}

func numberText(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

func yesNo(b bool) string {
	if b {
		return "YES"
	}
	return "NO"
}

// idsText joins ids in order; runs of three and more become 3..7, as commands take them.
func idsText(ids []int) string {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	var parts []string
	for i := 0; i < len(ids); {
		end := i
		for end+1 < len(ids) && ids[end+1] == ids[end]+1 {
			end++
		}
		if end-i >= 2 {
			parts = append(parts, fmt.Sprintf("%d..%d", ids[i], ids[end]))
		} else {
			for _, id := range ids[i : end+1] {
				parts = append(parts, strconv.Itoa(id))
			}
		}
		i = end + 1
	}
	return strings.Join(parts, ",")
}

// plural is "1 machine", "2 machines".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
