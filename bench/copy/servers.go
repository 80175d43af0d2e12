package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
	"hayloft/disk/repository/rbd"
	"hayloft/disk/repository/s3"
	"hayloft/lab/cephlab"
	"hayloft/lab/rgwlab"
	"hayloft/lab/tgtlab"
)

// state makes a directory for what has sockets: a short path.
func (b *bench) state() (string, error) {
	dir, err := os.MkdirTemp("", "hlc")
	if err == nil {
		b.ends.Push(func() error { return os.RemoveAll(dir) })
	}
	return dir, err
}

func (b *bench) rbd(ctx context.Context) ([]way, error) {
	state, err := b.state()
	if err != nil {
		return nil, err
	}
	cluster, err := cephlab.Start(ctx, cephlab.Config{Dir: state, Capacity: 3 * b.size << 20})
	if err != nil {
		return nil, err
	}
	b.ends.Push(cluster.Close)
	if err := cluster.CreatePool(ctx, "images"); err != nil {
		return nil, err
	}
	repo, err := rbd.New(disk.Repository{ID: 4, Path: "images", Options: map[string]string{"CEPH_CONF": cluster.Conf, "CEPH_KEYRING": cluster.Keyring}})
	if err != nil {
		return nil, err
	}
	b.closing(repo)
	if err := b.store(ctx, repo); err != nil {
		return nil, err
	}
	return []way{
		{"hayloft, checked", true, b.hayloft(opener(repo))},
		{"rbd export", false, program(func(to string) []string {
			return []string{"rbd", "--conf", cluster.Conf, "--keyring", cluster.Keyring, "--no-progress", "export", "images/image", to}
		})},
		{"qemu-img convert", false, program(func(to string) []string {
			return []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", "rbd:images/image:conf=" + cluster.Conf + ":keyring=" + cluster.Keyring, to}
		})},
	}, nil
}

// s3 is Ceph's gateway, before an OSD in memory.
func (b *bench) s3(ctx context.Context) ([]way, error) {
	state, err := b.state()
	if err != nil {
		return nil, err
	}
	server, err := rgwlab.New(ctx, cephlab.Config{Dir: state, Capacity: 3 * b.size << 20})
	if err != nil {
		return nil, err
	}
	b.ends.Push(server.Close)
	secret := filepath.Join(state, "secret")
	if err := os.WriteFile(secret, []byte(rgwlab.SecretKey), 0o600); err != nil {
		return nil, err
	}
	repo, err := s3.New(disk.Repository{ID: 5, Path: server.Endpoint, Options: map[string]string{"ACCESS_KEY_ID": rgwlab.AccessKey,
		"SECRET_KEY_FILE": secret, "REGION": rgwlab.Region, "PLAIN_CREDENTIALS": "YES", "SPOOL_DIR": b.dir}})
	if err != nil {
		return nil, err
	}
	b.closing(repo)
	if err := b.store(ctx, repo); err != nil {
		return nil, err
	}
	ways := []way{
		{"hayloft, checked", true, b.hayloft(opener(repo))},
		{"curl --aws-sigv4", false, program(func(to string) []string {
			return []string{"curl", "-sSf", "--aws-sigv4", "aws:amz:" + rgwlab.Region + ":s3", "--user", rgwlab.AccessKey + ":" + rgwlab.SecretKey,
				"-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-o", to, server.Endpoint + "/image"}
		})},
	}
	if _, err := exec.LookPath("rclone"); err != nil {
		say("s3: rclone is not installed and is left out")
		return ways, nil
	}
	remote := fmt.Sprintf(":s3,provider=Ceph,access_key_id=%s,secret_access_key=%s,region=%s,endpoint='http://%s':%s/image", rgwlab.AccessKey,
		rgwlab.SecretKey, rgwlab.Region, server.Core.EndpointURL().Host, server.Bucket)
	// Its library wants no certificates of the caller's for what goes by http.
	return append(ways, way{"rclone, 8 streams", false, program(func(to string) []string {
		return []string{"env", "-u", "AWS_CA_BUNDLE", "rclone", "--config", "/dev/null", "--multi-thread-streams", "8", "copyto", remote, to}
	})}), nil
}

// iscsi is a file on a target of tgt. The driver opens logical volumes of a server with LVM, which not every kernel has: what is
// measured is what it reads them with, QEMU's libiscsi behind our NBD client (package qemublock), and not its LVM and tgtadm commands.
func (b *bench) iscsi(context.Context) ([]way, error) {
	state, err := b.state()
	if err != nil {
		return nil, err
	}
	server, err := tgtlab.New(state)
	if err != nil {
		return nil, err
	}
	b.ends.Push(func() error { server.Kill(); return nil })
	const target = "iqn.2026-01.org.hayloft:copy"
	if err := server.Serve(1, target, b.image); err != nil {
		return nil, err
	}
	open := func(ctx context.Context) (repository.Source, error) {
		size := b.index.Length()
		return qemublock.Open(ctx, qemublock.Options{Label: "target " + target, Size: &size,
			Node: qemublock.ISCSI{Portal: server.Portal, Target: target, LUN: 1}})
	}
	return []way{
		{"hayloft, checked, without LVM", true, b.hayloft(open)},
		{"qemu-img convert", false, program(func(to string) []string {
			return []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", "iscsi://" + server.Portal + "/" + target + "/1", to}
		})},
	}, nil
}
