package way

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/image"
	"hayloft/internal/command"
)

// BenchmarkBase compares taking an image in and fetching its base, each hashed and made durable, with cp and sync
// of the same file. Run with -benchtime 3x; bytes are those of data, half of the file is holes.
func BenchmarkBase(b *testing.B) {
	const data = 512 << 20
	dir := b.TempDir()
	source, repoDir := filepath.Join(dir, "source"), filepath.Join(dir, "repository")
	f, err := os.Create(source)
	if err != nil {
		b.Fatal(err)
	}
	for i := range int64(data >> 20) {
		if _, err := f.WriteAt(noise(1<<20, uint32(i)), i*(2<<20)); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	f.Close()
	if err := os.Mkdir(repoDir, 0o755); err != nil {
		b.Fatal(err)
	}
	repo := disk.Repository{ID: 1, Path: repoDir}
	img := &disk.Image{Name: "i", Repository: repo, Source: "i", Format: "raw"}
	w, err := New(Config{Root: filepath.Join(dir, "ls"), Runner: command.Exec{}, GID: os.Getgid(), Host: "here", Data: newFake()})
	if err != nil {
		b.Fatal(err)
	}
	open := func() image.Target {
		r, err := w.open(repo)
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	b.Run("cp+sync", func(b *testing.B) {
		b.SetBytes(data)
		for b.Loop() {
			target := filepath.Join(dir, "copy")
			if out, err := exec.Command("cp", "--sparse=always", source, target).CombinedOutput(); err != nil {
				b.Fatalf("%v %s", err, out)
			}
			if err := exec.Command("sync", target).Run(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			os.Remove(target)
			b.StartTimer()
		}
	})
	b.Run("import", func(b *testing.B) {
		b.SetBytes(data)
		for b.Loop() {
			b.StopTimer()
			for _, name := range []string{"i", "i.idx"} {
				if err := open().Delete(b.Context(), name); err != nil && !fault.Is(err, fault.NotFound) {
					b.Fatal(err)
				}
			}
			b.StartTimer()
			info, err := image.Import(b.Context(), image.ImportOptions{Source: source, Type: image.OS, To: open(), Name: "i"})
			if err != nil {
				b.Fatal(err)
			}
			img.Digest, img.Size = info.Digest, info.Size
		}
	})
	b.Run("prepare", func(b *testing.B) {
		b.SetBytes(data)
		for b.Loop() {
			b.StopTimer()
			os.RemoveAll(filepath.Join(dir, "ls", "base"))
			if w, err = New(Config{Root: filepath.Join(dir, "ls"), Runner: command.Exec{}, GID: os.Getgid(), Host: "here", Data: newFake()}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, err := w.Prepare(b.Context(), disk.Request{Machine: 1, Dir: filepath.Join(dir, "1"), UID: os.Getuid(), GID: os.Getgid(),
				Disks: []disk.Spec{{Image: img, ReadOnly: true, Mode: "OFFLINE"}}}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warm prepare and remove", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.Prepare(b.Context(), disk.Request{Machine: 2, Dir: filepath.Join(dir, "2"), UID: os.Getuid(), GID: os.Getgid(),
				Disks: []disk.Spec{{Image: img, Mode: "OFFLINE"}}}, nil); err != nil {
				b.Fatal(err)
			}
			if err := w.Remove(b.Context(), 2, filepath.Join(dir, "2")); err != nil {
				b.Fatal(err)
			}
		}
	})
}
