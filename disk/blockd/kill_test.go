package blockd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache"
	"hayloft/disk/export/nbd"
	"hayloft/lab/labtest"
)

const (
	kills    = 4
	killMost = 100 * time.Millisecond
	between  = 8 // acknowledgements at least
)

// killer kills the process that k keeps with -9 at random moments, n times, but not before something was
// acknowledged since the last time; done is closed after the last.
func killer(t testing.TB, k *Keeper, n int, acknowledged *atomic.Int64) (done chan struct{}) {
	done = make(chan struct{})
	t.Cleanup(func() { <-done })
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	go func() {
		defer close(done)
		for range n {
			for end, before := time.Now().Add(patience), acknowledged.Load(); acknowledged.Load() < before+between; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Error("nothing is acknowledged any more")
					return
				}
			}
			time.Sleep(time.Duration(r.Int64N(int64(killMost)))) // the moment is what is random
			if err := killOnce(k); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return done
}

// killOnce kills the process and returns when the next one answers.
func killOnce(k *Keeper) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	before, err := k.Client().Status(ctx)
	if err != nil {
		return err
	}
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil { // the number is not another's before the keeper waited for it
		return err
	}
	for {
		now, err := k.Client().Status(ctx)
		if err != nil || now.PID != before.PID {
			return err
		}
	}
}

// acknowledged is the counter of a writer in a file of its own, outside of what is tested.
type acknowledged struct {
	file  *os.File
	count *atomic.Int64
}

func newAcknowledged(t testing.TB, dir string) acknowledged {
	f, err := os.Create(filepath.Join(dir, "acknowledged"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return acknowledged{f, new(atomic.Int64)}
}

func (a acknowledged) note(block int, serial uint64) error {
	_, err := a.file.WriteAt(binary.BigEndian.AppendUint64(nil, serial), int64(block)*8)
	a.count.Add(1)
	return err
}

func (a acknowledged) of(t testing.TB, block int) uint64 {
	p := make([]byte, 8)
	if _, err := a.file.ReadAt(p, int64(block)*8); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint64(p)
}

const block = 4096

// pattern is what the serial-th write puts into a block.
func pattern(number int, serial uint64) []byte {
	p := make([]byte, block)
	for i := 0; i < block; i += 16 {
		binary.BigEndian.PutUint64(p[i:], uint64(number))
		binary.BigEndian.PutUint64(p[i+8:], serial)
	}
	return p
}

// TestKilledWhileWritten: several writers write, flush, discard and read back while the data path is killed again
// and again. Everything that was acknowledged is there, on the host and after draining in the repository.
func TestKilledWhileWritten(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			img, want := b.persistent("mine", 1)
			k, _ := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
			e := b.volumeExport("12.0", img, mode)
			must(t, k.Client().Export(t.Context(), e))
			acks := newAcknowledged(t, b.dir)
			done := killer(t, k, kills, acks.count)
			const writers = 4
			blocks := len(want) / block
			var group sync.WaitGroup
			writes := make([]int, writers)
			for w := range writers {
				group.Go(func() { writes[w] = writeUntil(t, done, e.Path, acks, w, writers, blocks) })
			}
			group.Wait()
			if t.Failed() {
				return
			}
			for i := range blocks {
				if serial := acks.of(t, i); serial > 0 {
					copy(want[i*block:], pattern(i, serial))
				}
			}
			same(t, "on the host", readAll(t, dial(t, e.Path)), want)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			must(t, k.Client().Settle(ctx, "12.0", nil))
			same(t, "in the repository", b.inRepository(img), want)
			must(t, k.Client().Discard(ctx, "12.0"))
			t.Logf("%v writes acknowledged, %d kills", writes, kills)
		})
	}
}

func same(t testing.TB, where string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := 0; i < len(want); i += block {
		if p, q := got[i:i+block], want[i:i+block]; !bytes.Equal(p, q) {
			t.Errorf("%s: block %d has %x, acknowledged was %x", where, i/block, p[:16], q[:16])
		}
	}
}

// writeUntil writes the blocks whose number leaves w when divided by writers, one after the other, and gives how many writes
// were acknowledged. The client asks again what was not answered.
func writeUntil(t testing.TB, done <-chan struct{}, path string, acks acknowledged, w, writers, blocks int) int {
	ctx := context.Background()
	c, err := nbd.Dialer{Patience: patience, Log: logOf(t)}.Dial(ctx, "unix", path, "")
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(uint64(w), uint64(time.Now().UnixNano())))
	serials := map[int]uint64{}
	for n := 0; ; n++ {
		select {
		case <-done:
			return n
		default:
		}
		i := r.IntN(blocks/writers)*writers + w
		serials[i]++
		if err := c.Write(ctx, pattern(i, serials[i]), int64(i)*block, n%7 == 0); err != nil {
			t.Errorf("write: %v", err)
			return n
		}
		if err := acks.note(i, serials[i]); err != nil {
			t.Error(err)
			return n
		}
		if n%16 == 0 {
			if err := c.Flush(ctx); err != nil {
				t.Errorf("flush: %v", err)
				return n
			}
		}
		j := r.IntN(blocks/writers)*writers + w
		p := make([]byte, block)
		if serials[j] == 0 {
			continue
		}
		if err := c.Read(ctx, p, int64(j)*block); err != nil || !bytes.Equal(p, pattern(j, serials[j])) {
			t.Errorf("block %d has %x instead of serial %d, %v", j, p[:16], serials[j], err)
			return n
		}
	}
}

// TestKilledWhileFilled: readers of a base that is being filled see the image, whatever happens to the data path.
func TestKilledWhileFilled(t *testing.T) {
	b := newBench(t)
	want := content(400*chunk, 9)
	img := b.image(3, "tiny", want)
	k, _ := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
	e := b.baseExport("1.0", img)
	must(t, k.Client().Export(t.Context(), e))
	must(t, k.Client().Preload(t.Context(), Preload{Digest: img.Digest, All: true, Background: true, Rate: 20 << 20}, nil))
	var reads atomic.Int64
	done := killer(t, k, kills, &reads)
	var group sync.WaitGroup
	for w := range 3 {
		group.Go(func() {
			ctx := context.Background()
			c, err := nbd.Dialer{Patience: patience, Log: logOf(t)}.Dial(ctx, "unix", e.Path, "")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for {
				select {
				case <-done:
					return
				default:
				}
				p := make([]byte, 1+r.IntN(3*chunk))
				at := r.Int64N(int64(len(want) - len(p)))
				if err := c.Read(ctx, p, at); err != nil || !bytes.Equal(p, want[at:at+int64(len(p))]) {
					t.Errorf("%d bytes at %d differ, %v", len(p), at, err)
					return
				}
				reads.Add(1)
			}
		})
	}
	group.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, k.Client().Preload(ctx, Preload{Digest: img.Digest, All: true}, nil))
	if !bytes.Equal(readAll(t, dial(t, e.Path)), want) {
		t.Error("reads differ")
	}
}

// TestQEMUGoesOn: QEMU connects again by itself, and everything that it was told to be written is there.
func TestQEMUGoesOn(t *testing.T) {
	labtest.Root(t, "qemu-io")
	for _, mode := range []cache.Mode{cache.Through, cache.Back} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			img, want := b.persistent("mine", 1)
			k, _ := keeperOf(t, KeeperConfig{StateDir: b.config.StateDir})
			e := b.volumeExport("12.0", img, mode)
			must(t, k.Client().Export(t.Context(), e))
			acks := newAcknowledged(t, b.dir)
			q := startQEMU(t, e.Path)
			done := killer(t, k, kills/2, acks.count)
			r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
			blocks, written := len(want)/block, 0
			for over := false; !over; written++ {
				select {
				case <-done:
					over = true
				default:
				}
				i, value := r.IntN(blocks), byte(1+written%250)
				must(t, q.do(fmt.Sprintf("write -P %d %d %d", value, i*block, block), "wrote 4096/4096"))
				must(t, acks.note(i, uint64(value)))
				if written%16 == 0 {
					must(t, q.do("flush", ""))
				}
			}
			for i := range blocks {
				if v := acks.of(t, i); v > 0 {
					must(t, q.do(fmt.Sprintf("read -P %d %d %d", v, i*block, block), "read 4096/4096"))
					copy(want[i*block:], bytes.Repeat([]byte{byte(v)}, block))
				}
			}
			q.quit()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			must(t, k.Client().Settle(ctx, "12.0", nil))
			same(t, "in the repository", b.inRepository(img), want)
			t.Logf("%d writes acknowledged, %d kills", written, kills/2)
		})
	}
}

// qemu is a qemu-io that takes commands.
type qemu struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startQEMU(t testing.TB, socket string) *qemu {
	t.Helper()
	cmd := exec.Command("qemu-io", "--image-opts", "driver=nbd,server.type=unix,server.path="+socket+",reconnect-delay=120")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	q := &qemu{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	limit := time.AfterFunc(5*patience, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() { limit.Stop() })
	_, err = q.said()
	must(t, err)
	return q
}

// do carries out one command: what it prints contains good.
func (q *qemu) do(command, good string) error {
	if _, err := fmt.Fprintln(q.in, command); err != nil {
		return err
	}
	said, err := q.said()
	if err != nil || !strings.Contains(said, good) || strings.Contains(said, "fail") || strings.Contains(said, "rror") {
		return fmt.Errorf("qemu-io: %s: %s, %w", command, said, err)
	}
	return nil
}

// said is what it prints up to the next prompt. More than one command at a time it would not see.
func (q *qemu) said() (string, error) {
	const prompt = "qemu-io> "
	var text strings.Builder
	for !strings.HasSuffix(text.String(), prompt) {
		c, err := q.out.ReadByte()
		if err != nil {
			return text.String(), err
		}
		text.WriteByte(c)
	}
	return strings.TrimSuffix(text.String(), prompt), nil
}

func (q *qemu) quit() {
	_, _ = io.WriteString(q.in, "quit\n")
	q.in.Close()
	_ = q.cmd.Wait()
}
