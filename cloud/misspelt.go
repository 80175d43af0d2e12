package cloud

import (
	"slices"
	"strings"
)

// datastoreAttributes are what every datastore may have beside the options of its driver.
var datastoreAttributes = []string{"NAME", "TYPE", "DS_MAD", "BASE_PATH", "CACHE_MODE", "CACHE_SIZE", "PRELOAD_SIZE", "CACHE_FILL", "CACHE_FILL_RATE"}

// foreignAttributes are OpenNebula's own that look like ours.
var foreignAttributes = []string{"TM_MAD"}

// Misspelt gives the option or attribute that was meant by an attribute's name, "" where it is one, or resembles none. A name
// resembles another one when two letters at most are wrong, missing, too many or in each other's place (of a name with fewer
// than five letters, one), and when it is that with the driver's name before it: SSH_HOST.
func (d DatastoreDriver) Misspelt(name string) (meant string) {
	known := slices.Concat(d.Options, datastoreAttributes)
	if slices.Contains(known, name) || slices.Contains(foreignAttributes, name) {
		return ""
	}
	best := 3
	for _, spelling := range []string{name, strings.TrimPrefix(name, strings.ToUpper(d.Name)+"_")} {
		for _, k := range known {
			if n := editDistance(spelling, k); n < best && (n < 2 || len(k) > 4) {
				best, meant = n, k
			}
		}
	}
	return meant
}

// editDistance is how many bytes must be changed, put in, left out or swapped with their neighbour to make b of a ("optimal string
// alignment").
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			switch {
			case i == 0 || j == 0:
				rows[i][j] = i + j
				continue
			case a[i-1] == b[j-1]:
				rows[i][j] = rows[i-1][j-1]
			default:
				rows[i][j] = 1 + min(rows[i-1][j-1], rows[i-1][j], rows[i][j-1])
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
