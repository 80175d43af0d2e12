package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"hayloft/disk/fastcopy"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/internal/undo"
)

// bench is one run.
type bench struct {
	options
	dir   string
	image string // raw, sparse
	index *image.Index
	ends  undo.Stack // of the servers that run
}

func (b *bench) close() {
	if err := b.ends.Run(); err != nil {
		say("%v", err)
	}
}

// way is one way to copy the image to the target, which is not there before.
type way struct {
	name string
	ours bool
	copy func(ctx context.Context, target string) error
}

// makeImage makes a raw image: by turns 2 MiB of noise, 1 MiB of written zeros, 1 MiB of hole.
func (b *bench) makeImage() error {
	b.image = filepath.Join(b.dir, "image")
	f, err := os.Create(b.image)
	if err != nil {
		return err
	}
	defer f.Close()
	noise, zeros := make([]byte, 2<<20), make([]byte, 1<<20)
	source := rand.NewChaCha8([32]byte{1})
	for at := int64(0); at < b.size<<20; at += 4 << 20 {
		_, _ = source.Read(noise)
		if _, err := f.WriteAt(noise, at); err != nil {
			return err
		}
		if _, err := f.WriteAt(zeros, at+2<<20); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Truncate(b.size<<20), f.Sync()); err != nil {
		return err
	}
	b.index, _, err = image.Scan(context.Background(), nil, f, b.size<<20, nil)
	return err
}

// measure runs all ways of one repository, round by round, each round beginning with another one.
func (b *bench) measure(ctx context.Context, repository string, ways []way) ([]result, error) {
	results := make([]result, len(ways))
	for i, w := range ways {
		results[i] = result{Repository: repository, Name: w.name, Ours: w.ours}
	}
	for round := -1; round < b.rounds; round++ { // the first is not counted: it warms what there is to warm
		for n := range ways {
			i := (n + max(0, round)) % len(ways)
			seconds, cpu, err := b.one(ctx, ways[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ways[i].name, err)
			}
			if round < 0 {
				continue
			}
			say("%s, round %d: %s: %.2f s", repository, round+1, ways[i].name, seconds)
			results[i].Seconds, results[i].CPU = append(results[i].Seconds, seconds), append(results[i].CPU, cpu)
		}
	}
	best := 0.0
	for i := range results {
		results[i].Median = median(results[i].Seconds)
		results[i].Rate = float64(b.size<<20) / 1e6 / results[i].Median
		if !results[i].Ours {
			best = max(best, results[i].Rate)
		}
	}
	for i := range results {
		if results[i].Ours && best > 0 {
			results[i].Ratio = results[i].Rate / best
		}
	}
	return results, nil
}

func (b *bench) one(ctx context.Context, w way) (seconds, cpu float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	defer func() { err = errors.Join(err, os.RemoveAll(b.target())) }()
	syscall.Sync() // nobody pays for what another has written
	before := used()
	begun := time.Now()
	if err := w.copy(ctx, b.target()); err != nil {
		return 0, 0, err
	}
	seconds, cpu = time.Since(begun).Seconds(), used()-before
	return seconds, cpu, b.check(b.target())
}

// check compares the copy with the image.
func (b *bench) check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(io.Discard, b.index.Reader(f))
	if err == nil && n != b.index.Length() {
		err = fmt.Errorf("copied %d bytes of %d", n, b.index.Length())
	}
	return err
}

// used is the processor time of this process and its ended children, in seconds.
func used() float64 {
	total := 0.0
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			total += time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
		}
	}
	return total
}

// hayloft copies as a host does that wants a whole image: checked against its index, sparse, durable.
func (b *bench) hayloft(open func(ctx context.Context) (repository.Source, error)) func(context.Context, string) error {
	return func(ctx context.Context, target string) error {
		src, err := open(ctx)
		if err != nil {
			return err
		}
		defer src.Close()
		f, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(b.index.Length()), f.Close()); err != nil {
			return err
		}
		_, err = fastcopy.ToPath(ctx, target, fastcopy.Spec{Source: src, Index: b.index, Zeros: true})
		return err
	}
}

// program runs a peer, and makes what it wrote durable.
func program(args func(target string) []string) func(context.Context, string) error {
	return func(ctx context.Context, target string) error {
		argv := args(target)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(stderr.Bytes()))
		}
		f, err := os.OpenFile(target, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	}
}
