package s3lab

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestClient: a client that others wrote can use it, and is refused with a wrong key.
func TestClient(t *testing.T) {
	s, err := Start(Config{MinPart: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	connect := func(key string) *minio.Core {
		c, err := minio.NewCore(strings.TrimPrefix(s.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4("hay", key, ""), Region: "us-east-1", MaxRetries: 1, Transport: http.DefaultTransport})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	good, bad := connect("s3cret"), connect("geheim")
	const digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of hello
	put := func(c *minio.Core, content, digest string, o minio.PutObjectOptions) string {
		o.DisableContentSha256 = true
		_, err := c.PutObject(t.Context(), "images", "a b/ü+c", strings.NewReader(content), int64(len(content)), "", digest, o)
		return minio.ToErrorResponse(err).Code
	}
	once := minio.PutObjectOptions{}
	once.SetMatchETagExcept("*")
	for _, row := range []struct{ got, want string }{
		{put(bad, "hello", digest, minio.PutObjectOptions{}), "SignatureDoesNotMatch"},
		{put(good, "hullo", digest, minio.PutObjectOptions{}), "XAmzContentSHA256Mismatch"},
		{put(good, "hello", digest, once), ""},
		{put(good, "hello", digest, once), "PreconditionFailed"},
	} {
		if row.got != row.want {
			t.Errorf("%q, want %q", row.got, row.want)
		}
	}
	if keys := s.Keys(); len(keys) != 1 || keys[0] != "a b/ü+c" {
		t.Errorf("%q", keys)
	}
	id, err := good.NewMultipartUpload(t.Context(), "images", "m", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var parts []minio.CompletePart
	for i, content := range []string{"too short", "hello"} {
		p, err := good.PutObjectPart(t.Context(), "images", "m", id, i+1, bytes.NewReader([]byte(content)), int64(len(content)), minio.PutObjectPartOptions{Sha256Hex: sha([]byte(content)), DisableContentSha256: true})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, minio.CompletePart{PartNumber: i + 1, ETag: p.ETag})
	}
	_, err = good.CompleteMultipartUpload(t.Context(), "images", "m", id, parts, minio.PutObjectOptions{})
	if minio.ToErrorResponse(err).Code != "EntityTooSmall" {
		t.Error(err)
	}
	if _, err := good.CompleteMultipartUpload(t.Context(), "images", "m", id, parts[1:], minio.PutObjectOptions{}); err != nil {
		t.Error(err)
	}
	response, err := http.Get(s.Endpoint + "/m")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 403 {
		t.Errorf("without a signature: %s", response.Status)
	}
}
