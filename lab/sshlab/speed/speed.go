// Package speed compares whole-file copies from and to a storage server over SSH: Hayloft's ssh repository, encrypted and
// with PLAIN_DATA, and OpenSSH's scp and sftp, on the same machine with the same sshd in the same run.
package speed

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/ssh"
	"hayloft/internal/command"
	"hayloft/lab/sshlab"
)

// Config says what to copy. sshd, scp and sftp must be installed, and the process be root.
type Config struct {
	Dir     string // where the files of the run are made: three times Size; with -dir on a tmpfs the disk does not count
	Size    int64  // bytes
	Rounds  int    // each of all ways
	Program string // the hayloft program, for PLAIN_DATA; "": that way is left out
}

// Result is one copy. A copy to the server includes making it durable there.
type Result struct {
	What    string  `json:"what"` // read, write
	Way     string  `json:"way"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Rate is in MiB a second.
func (r Result) Rate() float64 { return float64(r.Bytes) / (1 << 20) / r.Seconds }

// way copies between a local file and an object of the server's directory.
type way struct {
	name  string
	read  func(ctx context.Context, object, file string) error
	write func(ctx context.Context, file, object string) error
}

// Compare runs all ways in turn and checks what they copied.
func Compare(ctx context.Context, c Config) (results []Result, err error) {
	dir, err := os.MkdirTemp(c.Dir, "sshspeed-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := sshlab.New(dir)
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	base := dir + "/base"
	if err := os.Mkdir(base, 0o750); err != nil {
		return nil, err
	}
	sum, err := makeFile(base+"/source", c.Size)
	if err != nil {
		return nil, err
	}
	ways, end, err := waysTo(server, base, c.Program)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	local := dir + "/local"
	for range max(1, c.Rounds) {
		for _, w := range ways {
			begin := time.Now()
			if err := w.read(ctx, "source", local); err != nil {
				return results, fmt.Errorf("read by %s: %w", w.name, err)
			}
			results = append(results, Result{"read", w.name, c.Size, time.Since(begin).Seconds()})
			if err := check(local, sum); err != nil {
				return results, fmt.Errorf("read by %s: %w", w.name, err)
			}
			begin = time.Now()
			if err := w.write(ctx, local, "copy"); err != nil {
				return results, fmt.Errorf("write by %s: %w", w.name, err)
			}
			results = append(results, Result{"write", w.name, c.Size, time.Since(begin).Seconds()})
			if err := check(base+"/copy", sum); err != nil {
				return results, fmt.Errorf("write by %s: %w", w.name, err)
			}
			if err := errors.Join(os.Remove(base+"/copy"), os.Remove(local)); err != nil {
				return results, err
			}
		}
	}
	return results, nil
}

func waysTo(server *sshlab.Server, base, program string) (ways []way, end func() error, err error) {
	options := server.Options()
	crypt, err := ssh.New(disk.Repository{Path: base, Options: options})
	if err != nil {
		return nil, nil, err
	}
	end = crypt.Close
	ways = []way{hayloft("hayloft ssh", crypt)}
	if program != "" {
		options := server.Options()
		options["PLAIN_DATA"], options["REMOTE_PROGRAM"] = "YES", program
		plain, err := ssh.New(disk.Repository{Path: base, Options: options})
		if err != nil {
			return nil, nil, errors.Join(err, end())
		}
		end = func() error { return errors.Join(crypt.Close(), plain.Close()) }
		ways = append(ways, hayloft("hayloft ssh, PLAIN_DATA", plain))
	}
	arguments := []string{"-F", "none", "-q", "-o", "IdentityFile=" + server.KeyFile, "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=" + server.KnownHostsFile,
		"-o", "BatchMode=yes", "-P", strconv.Itoa(server.Port)}
	host, _, _ := strings.Cut(server.Host, ":")
	far := func(object string) string { return host + ":" + base + "/" + object }
	scp := func(name string, more ...string) way {
		run := func(ctx context.Context, from, to string) error {
			_, err := command.Exec{}.Run(ctx, command.Cmd{Name: "scp", Args: append(append(more, arguments...), from, to)})
			return err
		}
		return way{name,
			func(ctx context.Context, object, file string) error { return run(ctx, far(object), file) },
			func(ctx context.Context, file, object string) error {
				return errors.Join(run(ctx, file, far(object)), sync(base+"/"+object))
			}}
	}
	sftp := func(ctx context.Context, batch string) error {
		_, err := command.Exec{}.Run(ctx, command.Cmd{Name: "sftp", Args: append(append([]string{"-b", "-"}, arguments...), host), Stdin: []byte(batch + "\n")})
		return err
	}
	return append(ways, scp("scp"), scp("scp, aes128-gcm", "-c", "aes128-gcm@openssh.com"), way{"sftp",
		func(ctx context.Context, object, file string) error {
			return sftp(ctx, fmt.Sprintf("get %s/%s %s", base, object, file))
		},
		func(ctx context.Context, file, object string) error {
			return errors.Join(sftp(ctx, fmt.Sprintf("put %s %s/%s", file, base, object)), sync(base+"/"+object))
		},
	}), end, nil
}

const (
	piece   = 4 << 20
	workers = 4
)

func hayloft(name string, r repository.Repository) way {
	return way{name,
		func(ctx context.Context, object, file string) error {
			src, err := r.Open(ctx, object)
			if err != nil {
				return err
			}
			defer src.Close()
			dst, err := os.Create(file)
			if err != nil {
				return err
			}
			return errors.Join(pieces(dst, src, src.Size()), dst.Close())
		},
		func(ctx context.Context, file, object string) error {
			src, err := os.Open(file)
			if err != nil {
				return err
			}
			defer src.Close()
			fi, err := src.Stat()
			if err != nil {
				return err
			}
			w, err := r.Create(ctx, object)
			if err != nil {
				return err
			}
			defer w.Abort()
			if err := pieces(w, src, fi.Size()); err != nil {
				return err
			}
			return w.Commit(ctx)
		}}
}

// pieces copies with several reads and writes under way.
func pieces(dst io.WriterAt, src io.ReaderAt, size int64) error {
	var group errgroup.Group
	for i := range workers {
		group.Go(func() error {
			buffer := make([]byte, piece)
			for offset := int64(i) * piece; offset < size; offset += workers * piece {
				b := buffer[:min(piece, size-offset)]
				if _, err := src.ReadAt(b, offset); err != nil && err != io.EOF {
					return err
				}
				if _, err := dst.WriteAt(b, offset); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// sync makes durable what scp and sftp leave to the kernel.
func sync(file string) error {
	f, err := os.OpenFile(filepath.Clean(file), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeFile writes bytes that cannot be compressed.
func makeFile(path string, size int64) (sum [32]byte, err error) {
	f, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8(sum), size); err != nil {
		return sum, err
	}
	copy(sum[:], h.Sum(nil))
	return sum, f.Sync()
}

func check(path string, want [32]byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if [32]byte(h.Sum(nil)) != want {
		return fmt.Errorf("%s has other bytes", path)
	}
	return nil
}
