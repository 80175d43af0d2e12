// Package clienttest is a server of the JSON interface for tests of what uses its client. It holds the
// objects that a test puts there, lists, shows and watches them, and answers everything else as the test
// says.
package clienttest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// Server listens on a unix socket until the test ends. Its methods are safe for concurrent use.
type Server struct {
	Socket string
	test   testing.TB
	routes *http.ServeMux

	mu       sync.Mutex
	objects  map[string]map[int]object
	watchers map[chan api.Event]bool
	requests []string
	http     *http.Server
	served   chan struct{}
}

type object struct {
	name string
	text json.RawMessage
}

// New starts a server without objects.
func New(t testing.TB) *Server {
	t.Helper()
	directory, err := os.MkdirTemp("", "hayloft") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Socket: filepath.Join(directory, "api.sock"), test: t, routes: http.NewServeMux(),
		objects: map[string]map[int]object{}, watchers: map[chan api.Event]bool{}}
	t.Cleanup(func() {
		s.Stop()
		_ = os.RemoveAll(directory)
	})
	s.routes.HandleFunc("GET /v1/watch", s.watch)
	s.routes.HandleFunc("GET /v1/{kinds}/{ref}", s.show)
	s.routes.HandleFunc("GET /v1/{kinds}", s.list)
	s.Start()
	return s
}

// Endpoint is what a client is given.
func (s *Server) Endpoint() string { return "unix://" + s.Socket }

// Start listens, again after Stop. Objects are kept.
func (s *Server) Start() {
	s.test.Helper()
	listener, err := net.Listen("unix", s.Socket)
	if err != nil {
		s.test.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve)}
	s.served = make(chan struct{})
	go func(server *http.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(listener)
	}(s.http, s.served)
}

// Stop ends the server and every connection, as a crash does.
func (s *Server) Stop() {
	s.mu.Lock()
	for w := range s.watchers {
		close(w)
	}
	clear(s.watchers)
	server, served := s.http, s.served
	s.mu.Unlock()
	_ = server.Close()
	<-served
}

// Put makes or changes an object, whose JSON has id and name, and tells all watches.
func (s *Server) Put(kind string, value any) {
	s.test.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		s.test.Fatal(err)
	}
	var key struct {
		ID   int    `json:"id"`
		Name string `json:"name"`
	}
	if err := json.Unmarshal(text, &key); err != nil {
		s.test.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[kind] == nil {
		s.objects[kind] = map[int]object{}
	}
	s.objects[kind][key.ID] = object{key.Name, text}
	s.tell(api.Event{Kind: kind, ID: key.ID, Object: text})
}

// Drop deletes an object and tells all watches.
func (s *Server) Drop(kind string, id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects[kind], id)
	s.tell(api.Event{Kind: kind, ID: id, Deleted: true})
}

// tell is called with mu held. A watch that does not keep up is a test's fault.
func (s *Server) tell(event api.Event) {
	for w := range s.watchers {
		select {
		case w <- event:
		default:
			s.test.Errorf("clienttest: a watch is %d events behind", cap(w))
		}
	}
}

// Answer serves a pattern of http.ServeMux, such as "POST /v1/vms/{id}/action". A nil answer is an empty
// body.
func (s *Server) Answer(pattern string, answer func(r *http.Request, body []byte) (any, error)) {
	s.routes.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		result, err := answer(r, body)
		if err != nil {
			refuse(w, err)
			return
		}
		if result != nil {
			_ = json.NewEncoder(w).Encode(result)
		}
	})
}

// Tunnel serves the tunnels: serve has the connection until it returns. An error of open refuses it.
func (s *Server) Tunnel(open func(id int, kind string, port int) error, serve func(conn net.Conn, kind string)) {
	s.routes.HandleFunc("GET /v1/vms/{id}/tunnel", func(w http.ResponseWriter, r *http.Request) {
		id, _ := strconv.Atoi(r.PathValue("id"))
		port, _ := strconv.Atoi(r.FormValue("port"))
		if r.Header.Get("Upgrade") != api.TunnelProtocol {
			refuse(w, fault.Errorf(fault.Invalid, "no upgrade"))
			return
		}
		if err := open(id, r.FormValue("kind"), port); err != nil {
			refuse(w, err)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			refuse(w, err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.TunnelProtocol)
		serve(conn, r.FormValue("kind"))
	})
}

// Requests lists what has been asked so far that is not a GET: "POST /v1/vms/3/action {...}".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		s.mu.Lock()
		s.requests = append(s.requests, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+string(body)))
		s.mu.Unlock()
	}
	s.routes.ServeHTTP(w, r)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	kind := strings.TrimSuffix(r.PathValue("kinds"), "s")
	items := []json.RawMessage{}
	s.mu.Lock()
	for _, id := range s.ids(kind) {
		text := s.objects[kind][id].text
		if kind != "vm" || r.FormValue("all") == "1" || !bytes.Contains(text, []byte(`"state_name":"DONE"`)) {
			items = append(items, text)
		}
	}
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(map[string]any{"items": items})
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) {
	kind, ref := strings.TrimSuffix(r.PathValue("kinds"), "s"), r.PathValue("ref")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.ids(kind) {
		if o := s.objects[kind][id]; strconv.Itoa(id) == ref || o.name == ref {
			_, _ = w.Write(o.text)
			return
		}
	}
	refuse(w, fault.Errorf(fault.NotFound, "%s %s does not exist", kind, ref))
}

func (s *Server) ids(kind string) []int {
	var ids []int
	for id := range s.objects[kind] {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	events := make(chan api.Event, 1000)
	var first []api.Event
	s.mu.Lock()
	for _, kind := range r.URL.Query()["kind"] {
		for _, id := range s.ids(kind) {
			first = append(first, api.Event{Kind: kind, ID: id, Object: s.objects[kind][id].text})
		}
	}
	s.watchers[events] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, events)
		s.mu.Unlock()
	}()
	lines, flush := json.NewEncoder(w), http.NewResponseController(w)
	for _, event := range append(first, api.Event{Synced: true}) {
		_ = lines.Encode(event)
	}
	_ = flush.Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case event, ok := <-events:
			if !ok {
				return
			}
			if slices.Contains(r.URL.Query()["kind"], event.Kind) {
				_ = lines.Encode(event)
				_ = flush.Flush()
			}
		}
	}
}

func refuse(w http.ResponseWriter, err error) {
	var body api.Error
	body.Error.Class, body.Error.Message = fault.ClassOf(err).String(), err.Error()
	w.WriteHeader(http.StatusConflict)
	_ = json.NewEncoder(w).Encode(body)
}
