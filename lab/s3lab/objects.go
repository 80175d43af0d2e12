package s3lab

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"
)

func newObject(data []byte) *object {
	sum := md5.Sum(data)
	return &object{data: data, etag: hex.EncodeToString(sum[:]), modified: time.Now().UTC().Truncate(time.Millisecond)}
}

// metadata is what a client wants kept with an object.
func metadata(r *http.Request) map[string]string {
	kept := map[string]string{}
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			kept[name] = r.Header.Get(name)
		}
	}
	return kept
}

// store is called with mu held.
func (s *Server) store(key string, o *object) {
	if old := s.objects[key]; old != nil {
		s.used -= int64(len(old.data))
	}
	s.used += int64(len(o.data))
	s.objects[key] = o
}

// room is called with mu held.
func (s *Server) room(n int) *apiError {
	if s.config.Capacity > 0 && s.used+int64(n) > s.config.Capacity {
		return fail(507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold")
	}
	return nil
}

// free says whether a condition lets key be made. It is called with mu held.
func (s *Server) free(r *http.Request, key string) *apiError {
	if s.config.Unconditional {
		return nil
	}
	if r.Header.Get("If-None-Match") == "*" && s.objects[key] != nil {
		return fail(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
	}
	return nil
}

func checkMD5(r *http.Request, body []byte) *apiError {
	sum := md5.Sum(body)
	if want := r.Header.Get("Content-Md5"); want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) {
		return fail(400, "BadDigest", "The Content-MD5 you specified did not match what we received")
	}
	return nil
}

func (s *Server) put(w http.ResponseWriter, r *http.Request, key string, body []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := checkMD5(r, body); e != nil {
		return e
	}
	if e := s.free(r, key); e != nil {
		return e
	}
	if e := s.room(len(body)); e != nil {
		return e
	}
	o := newObject(body)
	o.metadata = metadata(r)
	s.store(key, o)
	w.Header().Set("ETag", quoted(o.etag))
	w.WriteHeader(200)
	return nil
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, key string, _ []byte) *apiError {
	s.mu.Lock()
	o := s.objects[key]
	s.mu.Unlock()
	if o == nil {
		return fail(404, "NoSuchKey", "The specified key does not exist.")
	}
	w.Header().Set("ETag", quoted(o.etag))
	w.Header().Set("Content-Type", "application/octet-stream")
	for name, value := range o.metadata {
		w.Header().Set(name, value)
	}
	http.ServeContent(w, r, "", o.modified, bytes.NewReader(o.data)) // ranges and conditions
	return nil
}

func (s *Server) remove(w http.ResponseWriter, _ *http.Request, key string, _ []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objects[key]; o != nil {
		s.used -= int64(len(o.data))
		delete(s.objects, key)
	}
	w.WriteHeader(204)
	return nil
}

type listResult struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name, Prefix          string
	KeyCount, MaxKeys     int
	IsTruncated           bool
	EncodingType          string `xml:",omitempty"`
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	Contents              []listEntry
}

type listEntry struct {
	Key          string
	LastModified string
	ETag         string
	Size         int64
	StorageClass string
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, _ string, _ []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	if q.Get("delimiter") != "" {
		return fail(501, "NotImplemented", "delimiter")
	}
	result := listResult{Name: s.config.Bucket, Prefix: name(q, q.Get("prefix")), MaxKeys: page(q.Get("max-keys"), s.config.Page), EncodingType: q.Get("encoding-type")}
	var keys []string
	for k := range s.objects {
		if strings.HasPrefix(k, q.Get("prefix")) && k > after {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	if len(keys) > result.MaxKeys {
		keys = keys[:result.MaxKeys]
		result.IsTruncated, result.NextContinuationToken = true, keys[len(keys)-1]
	}
	for _, k := range keys {
		o := s.objects[k]
		result.Contents = append(result.Contents, listEntry{name(q, k), stamp(o.modified), quoted(o.etag), int64(len(o.data)), "STANDARD"})
	}
	result.KeyCount = len(keys)
	write(w, 200, result)
	return nil
}

// name is a key as the client wants it encoded.
func name(q url.Values, key string) string {
	if q.Get("encoding-type") == "url" {
		return strings.ReplaceAll(url.QueryEscape(key), "%2F", "/")
	}
	return key
}

func page(text string, most int) int {
	if n, err := strconv.Atoi(text); err == nil && n > 0 && n < most {
		return n
	}
	return most
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func quoted(etag string) string { return fmt.Sprintf("%q", etag) }
