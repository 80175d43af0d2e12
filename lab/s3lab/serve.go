package s3lab

import (
	"encoding/xml"
	"io"
	"net/http"
	"strconv"
	"time"
)

// apiError is an error as clients get it.
type apiError struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
	status  int
}

func fail(status int, code, message string) *apiError {
	return &apiError{status: status, Code: code, Message: message}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	ask := s.fault
	s.mu.Unlock()
	var f *Fault
	if ask != nil {
		f = ask(r)
	}
	if f != nil {
		if f.Delay > 0 {
			select {
			case <-time.After(f.Delay):
			case <-r.Context().Done():
				return
			}
		}
		switch {
		case f.Status != 0:
			io.Copy(io.Discard, r.Body)
			reply(w, r, fail(f.Status, f.Code, "fault"))
			return
		case f.Cut && f.AfterBytes == 0:
			panic(http.ErrAbortHandler)
		case f.Cut:
			w = &cutter{ResponseWriter: w, left: f.AfterBytes}
		case f.Late:
			w = &cutter{ResponseWriter: w}
		}
	}
	body, err := io.ReadAll(r.Body)
	s.received.Add(int64(len(body)))
	if err != nil {
		return
	}
	if e := s.authorize(r, body); e != nil {
		reply(w, r, e)
		return
	}
	key, ok := s.key(r)
	if !ok {
		reply(w, r, fail(404, "NoSuchBucket", "The specified bucket does not exist"))
		return
	}
	operation, handle := s.route(r, key)
	s.mu.Lock()
	s.log = append(s.log, r.Method+" "+operation+" "+key)
	s.mu.Unlock()
	if handle == nil {
		reply(w, r, fail(501, "NotImplemented", operation))
		return
	}
	if e := handle(w, r, key, body); e != nil {
		reply(w, r, e)
	}
}

type handler func(w http.ResponseWriter, r *http.Request, key string, body []byte) *apiError

func (s *Server) route(r *http.Request, key string) (string, handler) {
	q := r.URL.Query()
	has := func(name string) bool { _, ok := q[name]; return ok }
	copies := r.Header.Get("x-amz-copy-source") != ""
	switch {
	case key == "" && r.Method == "HEAD":
		return "HeadBucket", func(http.ResponseWriter, *http.Request, string, []byte) *apiError { return nil }
	case key == "" && r.Method == "GET" && q.Get("list-type") == "2":
		return "ListObjectsV2", s.list
	case key == "" && r.Method == "GET" && has("uploads"):
		return "ListMultipartUploads", s.listUploads
	case key == "":
	case r.Method == "GET" || r.Method == "HEAD":
		return "GetObject", s.get
	case r.Method == "PUT" && has("uploadId") && copies:
		return "UploadPartCopy", s.copyPart
	case r.Method == "PUT" && has("uploadId"):
		return "UploadPart", s.putPart
	case r.Method == "PUT" && !copies:
		return "PutObject", s.put
	case r.Method == "POST" && has("uploads"):
		return "CreateMultipartUpload", s.begin
	case r.Method == "POST" && has("uploadId"):
		return "CompleteMultipartUpload", s.complete
	case r.Method == "DELETE" && has("uploadId"):
		return "AbortMultipartUpload", s.abort
	case r.Method == "DELETE":
		return "DeleteObject", s.remove
	}
	return "unknown", nil
}

func reply(w http.ResponseWriter, r *http.Request, e *apiError) {
	if e.status == http.StatusNotModified || r.Method == "HEAD" {
		w.WriteHeader(e.status)
		return
	}
	write(w, e.status, e)
}

func write(w http.ResponseWriter, status int, v any) {
	text, err := xml.Marshal(v)
	if err != nil {
		panic(err) // a type of ours
	}
	text = append([]byte(xml.Header), text...)
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	w.Write(text)
}

// cutter ends the connection after so many bytes of the body.
type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if int64(len(p)) <= c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	if c.left > 0 {
		c.ResponseWriter.Write(p[:c.left])
		http.NewResponseController(c.ResponseWriter).Flush()
	}
	panic(http.ErrAbortHandler)
}

func (c *cutter) WriteHeader(status int) {
	if c.left == 0 {
		panic(http.ErrAbortHandler)
	}
	c.ResponseWriter.WriteHeader(status)
}
