// Package durabletest tells tests in which order a directory's names change and are synced.
package durabletest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Watch gives an empty directory (a FUSE file system, which wants root and /dev/fuse) of which it knows what is done in it.
func Watch(t testing.TB) (dir string, w *Watched) {
	t.Helper()
	behind, dir := t.TempDir(), t.TempDir()
	var st syscall.Stat_t
	if err := syscall.Stat(behind, &st); err != nil {
		t.Fatal(err)
	}
	w = &Watched{unsynced: map[string]string{}}
	data := &fs.LoopbackRoot{Path: behind, Dev: st.Dev}
	root := &node{&fs.LoopbackNode{RootData: data}, w}
	data.RootNode = root
	server, err := fs.Mount(dir, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "watched"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := server.Unmount()
		for limit := time.Now().Add(2 * time.Minute); errors.Is(err, syscall.EBUSY) && time.Now().Before(limit); err = server.Unmount() {
			time.Sleep(5 * time.Millisecond) // a process that was just started may have a copy of what the test had open
		}
		if err != nil {
			t.Error(err)
			return
		}
		server.Wait()
	})
	return dir, w
}

// Watched is what a watched directory knows.
type Watched struct {
	mu       sync.Mutex
	unsynced map[string]string // by name, relative: how it changed since its directory was synced
}

// Unsynced lists the names that a power cut may undo the change of, sorted: "unlink a", "rename b".
func (w *Watched) Unsynced() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for name, how := range w.unsynced {
		all = append(all, how+" "+name)
	}
	slices.Sort(all)
	return all
}

func (w *Watched) changed(how string, parent *fs.Inode, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsynced[under(parent)+name] = how
}

func (w *Watched) synced(dir *fs.Inode) {
	w.mu.Lock()
	defer w.mu.Unlock()
	prefix := under(dir)
	for name := range w.unsynced {
		if rest, ok := strings.CutPrefix(name, prefix); ok && !strings.Contains(rest, "/") {
			delete(w.unsynced, name)
		}
	}
}

func under(dir *fs.Inode) string {
	if path := dir.Path(nil); path != "" {
		return path + "/"
	}
	return ""
}

type node struct {
	*fs.LoopbackNode
	watched *Watched
}

// WrapChild implements fs.NodeWrapChilder.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{ops.(*fs.LoopbackNode), n.watched}
}

func (n *node) noted(how, name string, errno syscall.Errno) syscall.Errno {
	if errno == 0 {
		n.watched.changed(how, n.EmbeddedInode(), name)
	}
	return errno
}

// Rename implements fs.NodeRenamer.
func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to := parent.(*node)
	return to.noted("rename", newName, n.LoopbackNode.Rename(ctx, name, to.LoopbackNode, newName, flags))
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.noted("unlink", name, n.LoopbackNode.Unlink(ctx, name))
}

// Link implements fs.NodeLinker.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	i, errno := n.LoopbackNode.Link(ctx, target.(*node).LoopbackNode, name, out)
	return i, n.noted("link", name, errno)
}

// OpendirHandle implements fs.NodeOpendirHandler.
func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	handle, flags, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return &stream{handle.(directory), n}, flags, 0
}

type directory interface {
	fs.FileReaddirenter
	fs.FileSeekdirer
	fs.FileReleasedirer
	fs.FileFsyncdirer
}

type stream struct {
	directory
	node *node
}

// Fsyncdir implements fs.FileFsyncdirer.
func (s *stream) Fsyncdir(ctx context.Context, flags uint32) syscall.Errno {
	errno := s.directory.Fsyncdir(ctx, flags)
	if errno == 0 {
		s.node.watched.synced(s.node.EmbeddedInode())
	}
	return errno
}
