package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/http"
	"hayloft/disk/repository/path"
	"hayloft/disk/repository/ssh"
	"hayloft/image"
	"hayloft/lab/httplab"
	"hayloft/lab/sshlab"
)

// store puts the image into a repository as object "image".
func (b *bench) store(ctx context.Context, repo repository.Repository) error {
	_, err := image.Import(ctx, image.ImportOptions{Source: b.image, Type: image.OS, Format: image.Raw, To: repo, Name: "image"})
	return err
}

func opener(repo repository.Repository) func(context.Context) (repository.Source, error) {
	return func(ctx context.Context) (repository.Source, error) { return repo.Open(ctx, "image") }
}

func (b *bench) closing(repo repository.Repository) {
	if closer, ok := repo.(io.Closer); ok {
		b.ends.Push(closer.Close)
	}
}

// directory is where path, ssh and http find the image.
func (b *bench) directory(ctx context.Context) (string, error) {
	dir := filepath.Join(b.dir, "images")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	repo, err := path.New(disk.Repository{ID: 1, Path: dir})
	if err != nil {
		return "", err
	}
	return dir, b.store(ctx, repo)
}

func (b *bench) path(ctx context.Context) ([]way, error) {
	dir, err := b.directory(ctx)
	if err != nil {
		return nil, err
	}
	repo, err := path.New(disk.Repository{ID: 1, Path: dir})
	if err != nil {
		return nil, err
	}
	object := filepath.Join(dir, "image")
	return []way{
		{"hayloft, checked", true, b.hayloft(opener(repo))},
		{"cp --sparse=always", false, program(func(to string) []string { return []string{"cp", "--sparse=always", "--reflink=never", object, to} })},
		{"cp", false, program(func(to string) []string { return []string{"cp", "--reflink=never", object, to} })},
		{"dd bs=4M conv=sparse", false, program(func(to string) []string {
			return []string{"dd", "if=" + object, "of=" + to, "bs=4M", "conv=sparse", "status=none"}
		})},
		{"qemu-img convert", false, program(func(to string) []string {
			return []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", object, to}
		})},
	}, nil
}

func (b *bench) ssh(ctx context.Context) ([]way, error) {
	dir, err := b.directory(ctx)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(b.dir, "sshd")
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, err
	}
	server, err := sshlab.New(state)
	if err != nil {
		return nil, err
	}
	b.ends.Push(func() error { server.Kill(); return nil })
	binary := filepath.Join(b.dir, "hayloft")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "hayloft/cmd/hayloft")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("go build: %w", err)
	}
	var ways []way
	for _, plain := range []bool{false, true} {
		o, name := server.Options(), "hayloft, checked"
		if plain {
			o["PLAIN_DATA"], o["REMOTE_PROGRAM"] = "YES", binary
			name = "hayloft, checked, PLAIN_DATA"
		}
		repo, err := ssh.New(disk.Repository{ID: 2, Path: dir, Options: o})
		if err != nil {
			return nil, err
		}
		b.closing(repo)
		ways = append(ways, way{name, true, b.hayloft(opener(repo))})
	}
	client := []string{"-q", "-i", server.KeyFile, "-o", "UserKnownHostsFile=" + server.KnownHostsFile, "-o", "BatchMode=yes"}
	return append(ways, way{"scp", false, program(func(to string) []string {
		return append(append([]string{"scp", "-P", fmt.Sprint(server.Port)}, client...), "root@127.0.0.1:"+filepath.Join(dir, "image"), to)
	})}), nil
}

func (b *bench) http(ctx context.Context) ([]way, error) {
	dir, err := b.directory(ctx)
	if err != nil {
		return nil, err
	}
	server, err := httplab.Start(httplab.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	b.ends.Push(server.Close)
	repo, err := http.New(disk.Repository{ID: 3, Path: server.URL})
	if err != nil {
		return nil, err
	}
	b.closing(repo)
	url := server.URL + "/image"
	return []way{
		{"hayloft, checked", true, b.hayloft(opener(repo))},
		{"curl", false, program(func(to string) []string { return []string{"curl", "-sf", "-o", to, url} })},
	}, nil
}
