package s3lab

import (
	"crypto/md5"
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

const maxParts = 10_000

func (s *Server) begin(w http.ResponseWriter, r *http.Request, key string, _ []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	id := fmt.Sprintf("upload-%d", s.serial)
	s.uploads[id] = &upload{key: key, began: time.Now(), metadata: metadata(r), parts: map[int]*object{}}
	write(w, 200, struct {
		XMLName               xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket, Key, UploadId string
	}{Bucket: s.config.Bucket, Key: key, UploadId: id})
	return nil
}

// find is called with mu held.
func (s *Server) find(r *http.Request, key string) (*upload, int, *apiError) {
	q := r.URL.Query()
	u := s.uploads[q.Get("uploadId")]
	if u == nil || u.key != key {
		return nil, 0, fail(404, "NoSuchUpload", "The specified multipart upload does not exist.")
	}
	if q.Get("partNumber") == "" {
		return u, 0, nil
	}
	n, err := strconv.Atoi(q.Get("partNumber"))
	if err != nil || n < 1 || n > maxParts {
		return nil, 0, fail(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
	}
	return u, n, nil
}

// keep is called with mu held.
func (s *Server) keep(u *upload, n int, data []byte) (*object, *apiError) {
	if e := s.room(len(data)); e != nil {
		return nil, e
	}
	if old := u.parts[n]; old != nil {
		s.used -= int64(len(old.data))
	}
	s.used += int64(len(data))
	u.parts[n] = newObject(data)
	return u.parts[n], nil
}

func (s *Server) putPart(w http.ResponseWriter, r *http.Request, key string, body []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, n, e := s.find(r, key)
	if e == nil {
		e = checkMD5(r, body)
	}
	if e != nil {
		return e
	}
	part, e := s.keep(u, n, body)
	if e != nil {
		return e
	}
	w.Header().Set("ETag", quoted(part.etag))
	w.WriteHeader(200)
	return nil
}

func (s *Server) copyPart(w http.ResponseWriter, r *http.Request, key string, _ []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, n, e := s.find(r, key)
	if e != nil {
		return e
	}
	path, err := url.PathUnescape(r.Header.Get("x-amz-copy-source"))
	from, ok := strings.CutPrefix(strings.TrimPrefix(path, "/"), s.config.Bucket+"/")
	if err != nil || !ok {
		return fail(400, "InvalidArgument", "Copy Source must mention the source bucket and key")
	}
	src := s.objects[from]
	if src == nil {
		return fail(404, "NoSuchKey", "The specified key does not exist.")
	}
	if want := r.Header.Get("x-amz-copy-source-if-match"); want != "" && strings.Trim(want, `"`) != src.etag {
		return fail(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
	}
	data := src.data
	if text := r.Header.Get("x-amz-copy-source-range"); text != "" {
		var first, last int64
		if _, err := fmt.Sscanf(text, "bytes=%d-%d", &first, &last); err != nil || first < 0 || last < first || last >= int64(len(data)) {
			return fail(400, "InvalidRange", "The x-amz-copy-source-range is not valid for the source")
		}
		if int64(len(data)) <= s.config.MinPart {
			return fail(400, "InvalidRequest", "The specified copy source is not larger than the least size for a range")
		}
		data = data[first : last+1]
	}
	part, e := s.keep(u, n, data)
	if e != nil {
		return e
	}
	write(w, 200, struct {
		XMLName      xml.Name `xml:"CopyPartResult"`
		LastModified string
		ETag         string
	}{LastModified: stamp(part.modified), ETag: quoted(part.etag)})
	return nil
}

func (s *Server) complete(w http.ResponseWriter, r *http.Request, key string, body []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, _, e := s.find(r, key)
	if e != nil {
		return e
	}
	var wanted struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body, &wanted); err != nil || len(wanted.Part) == 0 {
		return fail(400, "MalformedXML", "The XML you provided was not well-formed or did not validate")
	}
	var data []byte
	sums := md5.New()
	for i, p := range wanted.Part {
		part := u.parts[p.PartNumber]
		switch {
		case part == nil || strings.Trim(p.ETag, `"`) != part.etag:
			return fail(400, "InvalidPart", fmt.Sprintf("Part %d could not be found, or its entity tag did not match", p.PartNumber))
		case i > 0 && p.PartNumber <= wanted.Part[i-1].PartNumber:
			return fail(400, "InvalidPartOrder", "The list of parts was not in ascending order")
		case i < len(wanted.Part)-1 && int64(len(part.data)) < s.config.MinPart:
			return fail(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed object size")
		}
		data = append(data, part.data...)
		sum, _ := hex.DecodeString(part.etag)
		sums.Write(sum)
	}
	if e := s.free(r, key); e != nil {
		return e
	}
	s.drop(r.URL.Query().Get("uploadId"))
	o := newObject(data)
	o.etag = fmt.Sprintf("%x-%d", sums.Sum(nil), len(wanted.Part))
	o.metadata = u.metadata
	s.store(key, o)
	write(w, 200, struct {
		XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
		Bucket, Key, ETag string
	}{Bucket: s.config.Bucket, Key: key, ETag: quoted(o.etag)})
	return nil
}

// drop is called with mu held.
func (s *Server) drop(id string) {
	for _, p := range s.uploads[id].parts {
		s.used -= int64(len(p.data))
	}
	delete(s.uploads, id)
}

func (s *Server) abort(w http.ResponseWriter, r *http.Request, key string, _ []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, _, e := s.find(r, key); e != nil {
		return e
	}
	s.drop(r.URL.Query().Get("uploadId"))
	w.WriteHeader(204)
	return nil
}

type uploadEntry struct{ Key, UploadId, Initiated string }

func (s *Server) listUploads(w http.ResponseWriter, r *http.Request, _ string, _ []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	var all []uploadEntry
	for id, u := range s.uploads {
		if strings.HasPrefix(u.key, q.Get("prefix")) && (u.key > q.Get("key-marker") || u.key == q.Get("key-marker") && id > q.Get("upload-id-marker")) {
			all = append(all, uploadEntry{u.key, id, stamp(u.began)})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		return all[i].Key < all[j].Key || all[i].Key == all[j].Key && all[i].UploadId < all[j].UploadId
	})
	result := struct {
		XMLName                           xml.Name `xml:"ListMultipartUploadsResult"`
		Bucket, EncodingType              string
		NextKeyMarker, NextUploadIdMarker string
		IsTruncated                       bool
		Upload                            []uploadEntry
	}{Bucket: s.config.Bucket, EncodingType: q.Get("encoding-type")}
	if most := page(q.Get("max-uploads"), s.config.Page); len(all) > most {
		all = all[:most]
		result.IsTruncated, result.NextKeyMarker, result.NextUploadIdMarker = true, name(q, all[most-1].Key), all[most-1].UploadId
	}
	for _, u := range all {
		result.Upload = append(result.Upload, uploadEntry{name(q, u.Key), u.UploadId, u.Initiated})
	}
	write(w, 200, result)
	return nil
}
