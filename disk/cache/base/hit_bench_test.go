package base

import (
	"math/rand/v2"
	"testing"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
)

// BenchmarkHit compares random hits of 4 KiB with reads of the file itself.
func BenchmarkHit(b *testing.B) {
	data := content("", 0)
	for i := range 4096 {
		c := make([]byte, chunk)
		rand.NewChaCha8([32]byte{9, byte(i), byte(i >> 8)}).Read(c)
		data = append(data, c...)
	}
	for _, mode := range []string{"file", "whole", "partial", "bounded"} {
		b.Run(mode, func(b *testing.B) {
			host, err := storage.OS(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			bench := newBench(b, data)
			o := bench.open(func(c *cache.BaseConfig) {
				c.Dir = host
				if mode == "bounded" {
					c.Capacity = int64(len(data)) - chunk
				}
			})
			r := o.Reader(nil)
			end := int64(len(data))
			if mode == "partial" || mode == "bounded" {
				end -= 2 * chunk
			}
			bench.check(r, 0, int(end))
			if err := o.Sync(); err != nil {
				b.Fatal(err)
			}
			p := make([]byte, 4096)
			random := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				at := random.Int64N(end-4096) &^ 511
				if mode == "file" {
					if _, err := o.data.ReadAt(p, at); err != nil {
						b.Fatal(err)
					}
				} else if done, _ := r.(export.Quick).TryReadAt(p, at); !done {
					b.Fatal("no hit")
				}
			}
		})
	}
}
