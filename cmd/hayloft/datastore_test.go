package main

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

func TestWarningsOfDatastoreCreate(t *testing.T) {
	c := newConsole(t)
	c.server.Answer("POST /v1/datastores", func(*http.Request, []byte) (any, error) { return api.Created{ID: 7}, nil })
	asked, answer := 0, api.Datastore{Datastore: cloud.Datastore{ID: 7, Name: "store"}}
	var refusal error
	c.server.Answer("GET /v1/datastores/7", func(*http.Request, []byte) (any, error) { asked++; return answer, refusal })
	for _, row := range []struct {
		name, line string
		failure    string // of the storage
		refusal    error
		asked      int
		want       []string // lines on standard error: the words of each
	}{
		{name: "nothing to say", line: "--driver ssh --path /srv --set HOST=a --set COMMENT=x", asked: 1},
		{name: "misspelt", line: "--driver ssh --path /srv --set HSOT=a --set CACHE_MOED=BACK --set LIMIT_MB=5", asked: 1, want: []string{
			"warning: HSOT is not an option of ssh datastores; did you mean HOST? It is kept as an attribute",
			"warning: CACHE_MOED is not an option of ssh datastores; did you mean CACHE_MODE? It is kept as an attribute"}},
		{name: "by another name", line: "--driver ceph --path images --set CEPH_USRE=a", asked: 1, want: []string{"CEPH_USRE is not an option of rbd datastores"}},
		{name: "the driver in --set", line: "--path /srv --set DS_MAD=ssh --set KEYFILE=/k", asked: 1, want: []string{"did you mean KEY_FILE?"}},
		{name: "no driver", line: "--path /srv --set HOSTS=a --set UNORDERD_BACK=YES", asked: 1, want: []string{"UNORDERD_BACK is not an option of path datastores"}},
		{name: "away", line: "--driver ssh --path /srv", failure: "datastore 7 (a:/srv): connection refused\x1b[31m", asked: 1,
			want: []string{"warning: datastore 7 is made, but cannot be used yet: datastore 7 (a:/srv): connection refused[31m"}},
		{name: "not asked", line: "--driver ssh --path /srv --set HSOT=a --no-check", failure: "away", want: []string{"HSOT"}},
		{name: "server away", line: "--driver ssh --path /srv", refusal: fault.Errorf(fault.Unavailable, "store: no leader"), asked: 1,
			want: []string{"warning: datastore 7 is made, but whether its storage can be reached is not known: store: no leader"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			asked, answer.Error, refusal = 0, row.failure, row.refusal
			status, out, said := c.run(append([]string{"-q", "datastore", "create", "--name", "store"}, strings.Fields(row.line)...)...)
			if status != 0 || out != "7\n" || asked != row.asked {
				t.Errorf("exit status %d, %q; the storage was asked for %d times", status, out, asked)
			}
			lines := strings.Split(strings.TrimSuffix(said, "\n"), "\n")
			if said == "" {
				lines = nil
			}
			if len(lines) != len(row.want) {
				t.Fatalf("said %q", said)
			}
			for i, want := range row.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("line %d: %q, want %q", i, lines[i], want)
				}
			}
		})
	}
}

func TestStorageThatSaysNothing(t *testing.T) {
	c := newConsole(t)
	c.server.Answer("GET /v1/datastores/7", func(r *http.Request, _ []byte) (any, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	asking, err := client.New(client.Config{Endpoint: c.server.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	var said bytes.Buffer
	a := newApp()
	a.stderr = &said
	a.warnOfStorage(t.Context(), asking, 7, 50*time.Millisecond)
	if got := said.String(); got != "warning: datastore 7 is made, but within 50ms nothing was heard of its storage (see \"hayloft datastore show 7\")\n" {
		t.Error(got)
	}
}
