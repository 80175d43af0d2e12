package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

func (o outcome) print(w io.Writer) {
	for _, i := range o.Images {
		fmt.Fprintf(w, "\n%s: %.0f MB, %.0f MB of data; line of %.0f Mbit/s. One boot reads %.1f MB, which lie in chunks of %.1f MB together.\n",
			i.Name, mb(i.Size), mb(i.Data), o.Mbit, mb(i.ReadSet.Sectors), mb(i.ReadSet.Chunks))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "VARIANT\tSECONDS TO SSH\tMB FETCHED\tOF THE READ SET (CHUNKS)\tOF THE READ SET (SECTORS)\t")
		for _, v := range i.Variants {
			fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.2f\t%.2f\t\n", v.Name, v.Median, mb(v.Fetched), float64(v.Fetched)/float64(i.ReadSet.Chunks),
				float64(v.Fetched)/float64(i.ReadSet.Sectors))
		}
		t.Flush()
	}
	if m := o.Many; m != nil {
		fmt.Fprintf(w, "\n%d machines at once on a cold host: last answer after %.1f s, %.1f MB fetched, one alone %.1f MB: ratio %.3f\n",
			m.Machines, m.Seconds, mb(m.Bytes), mb(m.OneBytes), m.Ratio)
	}
}

func mb(n int64) float64 { return float64(n) / 1e6 }
