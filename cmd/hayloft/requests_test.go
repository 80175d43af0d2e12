package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
)

// answering lets the server take everything.
func answering(c *console) {
	id := func(*http.Request, []byte) (any, error) { return api.Created{ID: 7}, nil }
	nothing := func(*http.Request, []byte) (any, error) { return nil, nil }
	c.server.Answer("POST /v1/{kinds}", id)
	c.server.Answer("POST /v1/vms", func(_ *http.Request, body []byte) (any, error) {
		var request api.CreateVMs
		if err := json.Unmarshal(body, &request); err != nil {
			return nil, err
		}
		var made api.CreatedVMs
		for n := range request.Count {
			made.IDs = append(made.IDs, 20+n)
		}
		return made, nil
	})
	host := func(*http.Request, []byte) (any, error) { return api.CreatedHost{ID: 2, Token: "id.secret.hash"}, nil }
	c.server.Answer("POST /v1/hosts", host)
	c.server.Answer("POST /v1/hosts/{ref}/token", host)
	c.server.Answer("POST /v1/{kinds}/{ref}/{what}", nothing)
	c.server.Answer("POST /v1/vms/{id}/disks/{disk}/saveas", id)
	c.server.Answer("POST /v1/vms/{id}/disks/{disk}/cache", nothing)
	c.server.Answer("PUT /v1/{kinds}/{ref}", nothing)
	c.server.Answer("DELETE /v1/{kinds}/{ref}", nothing)
}

// asked is what a command line asks of the server, with the text of templates on one line.
func requested(c *console, args ...string) string {
	c.test.Helper()
	before := len(c.server.Requests())
	c.ok(args...)
	text := strings.Join(c.server.Requests()[before:], "\n")
	return strings.NewReplacer(`\n"`, `"`, `\n  `, ` `, `\n`, ` `, `\"`, `'`).Replace(text)
}

func TestRequests(t *testing.T) {
	c := newConsole(t)
	furnish(t, c)
	answering(c)
	c.server.Put(cloud.KindTemplate, api.Template{VMTemplate: cloud.VMTemplate{ID: 9, Name: "keyed",
		Template: parsed(t, `CONTEXT = [ NETWORK = YES, START = "a b", SSH_PUBLIC_KEY = "old" ]`)}})
	directory := t.TempDir()
	key := filepath.Join(directory, "key.pub")
	file := filepath.Join(directory, "t.tmpl")
	for path, text := range map[string]string{key: "# mine\nssh-ed25519 AAAA ann\n", file: "NAME = filed\nCPU = 2\nMEMORY = 64 # small\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]string{
		"vm create web --count 3 --hold --name w-%i":                                                `POST /v1/vms {"template":"web","name":"w-%i","count":3,"hold":true}`,
		"vm create keyed --ssh-key " + key + " --context A=b=c":                                     `POST /v1/vms {"template":"keyed","text":"CONTEXT=[ NETWORK='YES', START='a b', SSH_PUBLIC_KEY='old ssh-ed25519 AAAA ann', A='b=c' ]","count":1}`,
		"vm create --image tiny --image 3 --network lan --memory 2G --cpu 0.25 --vcpu 2 --name one": `POST /v1/vms {"text":"DISK=[ IMAGE='tiny' ] DISK=[ IMAGE_ID='3' ] NIC=[ NETWORK='lan' ] CPU='0.25' VCPU='2' MEMORY='2048' CONTEXT=[ NETWORK='YES' ]","name":"one","count":1}`,
		"vm create --image tiny":                                    `POST /v1/vms {"text":"DISK=[ IMAGE='tiny' ] CPU='1' MEMORY='256'","count":1}`,
		"vm create --file " + file + " --cpu 4 --hypervisor lxc":    `POST /v1/vms {"text":"NAME='filed' CPU='4' MEMORY='64' HYPERVISOR='lxc'","name":"filed","count":1}`,
		"template instantiate web --set MEMORY=99":                  `POST /v1/vms {"template":"web","text":"MEMORY='99'","count":1}`,
		"template create --file " + file:                            `POST /v1/templates {"template":"NAME='filed' CPU='2' MEMORY='64'"}`,
		"template create --name t --image tiny --set A=1 --set A=2": `POST /v1/templates {"template":"DISK=[ IMAGE='tiny' ] CPU='1' MEMORY='256' NAME='t' A='1' A='2'"}`,
		"template update web --set MEMORY=1":                        `PUT /v1/templates/web {"template":"MEMORY='1'","merge":true}`,
		"template update web --file " + file + " --replace":         `PUT /v1/templates/web {"template":"NAME='filed' CPU='2' MEMORY='64'"}`,
		"template delete web keyed":                                 "DELETE /v1/templates/web\nDELETE /v1/templates/keyed",
		"image create --path /i/tiny.tar.gz --no-wait":              `POST /v1/images {"template":"PATH='/i/tiny.tar.gz' NAME='tiny'"}`,
		"image create --name d --size 10G --type datablock --persistent --prefix vd --format raw --digest sha256:aa --datastore 1 --no-wait": `POST /v1/images {"template":"TYPE='DATABLOCK' DIGEST='sha256:aa' FORMAT='raw' DEV_PREFIX='vd' PERSISTENT='YES' SIZE='10240' NAME='d'","datastore":"1"}`,
		"image create --path http://x/y.img --name n --no-wait":                                                                              `POST /v1/images {"template":"PATH='http://x/y.img' NAME='n'"}`,
		"image persistent tiny":                        `POST /v1/images/tiny/persistent {"persistent":true}`,
		"image nonpersistent tiny 2":                   "POST /v1/images/tiny/persistent {\"persistent\":false}\nPOST /v1/images/2/persistent {\"persistent\":false}",
		"image delete tiny":                            `DELETE /v1/images/1`,
		"ds create --name g --type file --path /srv/g": `POST /v1/datastores {"template":"TYPE='FILE_DS' BASE_PATH='/srv/g' NAME='g'"}`,
		"network create --name lan --range 10.20.0.0/24 --nat --dns 9.9.9.9,1.1.1.1":                                                    `POST /v1/networks {"template":"DNS='9.9.9.9 1.1.1.1' AR=[ TYPE='IP4', IP='10.20.0.2', SIZE='253' ] GATEWAY='10.20.0.1' NETWORK_ADDRESS='10.20.0.0' NETWORK_MASK='255.255.255.0' NAT='YES' NAME='lan'"}`,
		"network create --name b --bridge br0 --range 192.168.7.100/50 --gateway 192.168.7.1 --filter=false --host-gateway --cluster c": `POST /v1/networks {"template":"BRIDGE='br0' AR=[ TYPE='IP4', IP='192.168.7.100', SIZE='50' ] GATEWAY='192.168.7.1' NETWORK_ADDRESS='192.168.7.0' NETWORK_MASK='255.255.255.0' HOST_GATEWAY='YES' FILTER='NO' NAME='b'","cluster":"c"}`,
		"cluster create rack":                     `POST /v1/clusters {"template":"NAME='rack'"}`,
		"host create node-3 --cluster rack":       `POST /v1/hosts {"name":"node-3","cluster":"rack"}`,
		"host token node-1":                       `POST /v1/hosts/node-1/token`,
		"host disable node-1 node-2":              "POST /v1/hosts/node-1/status {\"status\":\"disable\"}\nPOST /v1/hosts/node-2/status {\"status\":\"disable\"}",
		"host enable 0":                           `POST /v1/hosts/0/status {"status":"enable"}`,
		"host offline 0":                          `POST /v1/hosts/0/status {"status":"offline"}`,
		"host update node-1 --set RESERVED_CPU=1": `PUT /v1/hosts/node-1 {"template":"RESERVED_CPU='1'","merge":true}`,
		"vm hold 3,4":                             "POST /v1/vms/3/action {\"action\":\"hold\"}\nPOST /v1/vms/4/action {\"action\":\"hold\"}",
		"vm release 4":                            `POST /v1/vms/4/action {"action":"release"}`,
		"vm poweroff web-1 --hard":                `POST /v1/vms/3/action {"action":"poweroff-hard"}`,
		"vm resume web-1":                         `POST /v1/vms/3/action {"action":"resume"}`,
		"vm suspend 3":                            `POST /v1/vms/3/action {"action":"suspend"}`,
		"vm stop 3":                               `POST /v1/vms/3/action {"action":"stop"}`,
		"vm undeploy 3":                           `POST /v1/vms/3/action {"action":"undeploy"}`,
		"vm reboot 3 --hard":                      `POST /v1/vms/3/action {"action":"reboot-hard"}`,
		"vm terminate 3..4 broken --hard": "POST /v1/vms/3/action {\"action\":\"terminate-hard\"}\nPOST /v1/vms/4/action {\"action\":\"terminate-hard\"}\n" +
			`POST /v1/vms/5/action {"action":"terminate-hard"}`,
		"vm deploy 4 node-1 --enforce":                        `POST /v1/vms/4/deploy {"host":"node-1","enforce":true}`,
		"vm recover broken --retry":                           `POST /v1/vms/5/recover {"operation":"retry"}`,
		"vm recover 5 --delete-db":                            `POST /v1/vms/5/recover {"operation":"delete-db"}`,
		"vm resize 3 --cpu 2 --memory 1G":                     `POST /v1/vms/3/resize {"cpu":2,"memory_mb":1024}`,
		"vm disk-cache web-1 0 --mode BACK --cache-size 4G":   `POST /v1/vms/3/disks/0/cache {"mode":"BACK","size_mb":"4096"}`,
		"vm disk-cache 3 1 --preload auto --cache-size 0":     `POST /v1/vms/3/disks/1/cache {"size_mb":"0","preload":"auto"}`,
		"vm disk-cache 3 1 --preload 1G":                      `POST /v1/vms/3/disks/1/cache {"preload":"1024"}`,
		"image prefetch tiny --hosts node-1,1 --rate 1.5":     `POST /v1/images/tiny/prefetch {"hosts":["node-1","1"],"rate":1572864}`,
		"image prefetch tiny --all --cancel":                  `POST /v1/images/tiny/prefetch {"all":true,"cancel":true}`,
		"image release tiny":                                  `POST /v1/images/tiny/release {}`,
		"image release tiny --accept-stale":                   `POST /v1/images/tiny/release {"accept_stale":true}`,
		"image update tiny --set CACHE_MODE=BACK":             `PUT /v1/images/tiny {"template":"CACHE_MODE='BACK'","merge":true}`,
		"image create --source a/deb.img -d golden --no-wait": `POST /v1/images {"template":"SOURCE='a/deb.img' NAME='deb'","datastore":"golden"}`,
		"datastore update 1 --set CACHE_FILL=NO":              `PUT /v1/datastores/1 {"template":"CACHE_FILL='NO'","merge":true}`,
		"ds create --name c --driver rbd --path images":       `POST /v1/datastores {"template":"DS_MAD='rbd' BASE_PATH='images' NAME='c'"}`,
		"ds create --name n --driver nfs --path nas:/srv/x":   `POST /v1/datastores {"template":"DS_MAD='nfs' BASE_PATH='nas:/srv/x' NAME='n'"}`,
		"ds create --name s --path images --set DS_MAD=ssh":   `POST /v1/datastores {"template":"BASE_PATH='images' NAME='s' DS_MAD='ssh'"}`,
		"ds create --name w --driver http --path https://h/x": `POST /v1/datastores {"template":"DS_MAD='http' BASE_PATH='https://h/x' NAME='w'"}`,
		"vm disk-saveas web-1 0 saved":                        `POST /v1/vms/3/disks/0/saveas {"name":"saved"}`,
	} {
		if got := requested(c, strings.Fields(line)...); got != want {
			t.Errorf("%s\n got %s\nwant %s", line, got, want)
		}
	}
	c.stdin = strings.NewReader("NAME = piped MEMORY = 1")
	if got := requested(c, "template", "create", "-f", "-"); got != `POST /v1/templates {"template":"NAME='piped' MEMORY='1'"}` {
		t.Error(got)
	}
	for line, want := range map[string]string{
		"vm create web -n 2":            "IDs: 20,21\n",
		"vm create web -n 2 -q":         "20\n21\n",
		"vm create web -n 2 -o id":      "20\n21\n",
		"cluster create c -o yaml":      "id: 7\n",
		"host create n -q":              "id.secret.hash\n",
		"vm disk-saveas 3 0 x":          "ID: 7\n",
		"vm recover 3..4 --failure":     "",
		"host create n":                 "ID: 2\nTo join, run on the host, within a day (the token is good once):\n  hayloft agent --server ADDRESS-OF-THE-SERVER --host n --token id.secret.hash\n",
		"host token 0 -o json":          "{\n  \"id\": 2,\n  \"token\": \"id.secret.hash\"\n}\n",
		"version --client":              "client " + version + "\n",
		"__complete vm show web":        "web-1\tvm 3\n4\ta machine with a very long name indeed, and 漢字 too\n5\tbroken\n6\tcopying\n7\tdraining\n8\tundrained\n:4\n",
		"__complete host show node-":    "node-1\thost 0\nnode-2\thost 1\n:4\n",
		"__complete vm deploy 3 node-2": "node-1\thost 0\nnode-2\thost 1\n:4\n",
		"__complete vm create --wait=":  "running\nssh\n:4\n",
	} {
		if got := c.ok(strings.Fields(line)...); got != want {
			t.Errorf("%s\n got %q\nwant %q", line, got, want)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	c := newConsole(t)
	furnish(t, c)
	answering(c)
	directory := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := write("bad.tmpl", "NAME = x\nDISK = [ IMAGE = \"y\"\n")
	private := write("key", "-----BEGIN OPENSSH PRIVATE KEY-----\n")
	empty := write("empty.pub", "\n")
	big := write("big", strings.Repeat("#", largestInput+1))
	for _, row := range []struct {
		line   string
		status int
		want   string
	}{
		{"vm", 0, ""},
		{"vm lost", 2, `hayloft vm has no command "lost"`},
		{"bogus", 2, `hayloft has no command "bogus"`},
		{"help bogus thing", 2, `there is no command "bogus thing"`},
		{"vm list --bogus", 2, "unknown flag: --bogus (see \"hayloft vm list --help\")"},
		{"vm list -o xml", 2, `"xml" is none of json, yaml, name, id`},
		{"vm list extra", 2, `takes no argument, and there is "extra"`},
		{"vm deploy 3", 2, "needs VM HOST"},
		{"vm deploy 3 a b", 2, `and there is "b" too`},
		{"vm create", 2, "nothing to make a machine from"},
		{"vm create web --count 0", 2, "--count 0"},
		{"vm create web --wait=sleep", 2, `--wait "sleep"`},
		{"vm create web --wait --hold", 2, "a held machine is not placed"},
		{"vm create web --memory lots", 2, `--memory: size "lots"`},
		{"vm create web --memory -3", 2, `size "-3"`},
		{"vm create web --context novalue", 2, `--context "novalue"`},
		{"vm create web --ssh-key " + private, 2, "is a private key"},
		{"vm create web --ssh-key " + empty, 2, "no SSH key in"},
		{"vm create web --ssh-key /nowhere.pub", 3, "/nowhere.pub"},
		{"vm create nobody --context A=b", 3, "template nobody does not exist"},
		{"vm create --file " + bad, 2, "template " + bad + ": "},
		{"vm create --file " + big, 2, "more than"},
		{"vm create --file /nowhere", 3, "/nowhere"},
		{"vm create web --set novalue", 2, `--set "novalue"`},
		{"vm hold", 2, "needs VM..."},
		{"vm hold nobody", 3, `vm "nobody" does not exist`},
		{"vm hold 7..3", 2, "range 7..3"},
		{"vm hold 0..99999", 2, "at most"},
		{"vm hold 3,,4", 2, "is empty"},
		{"vm console 3..4", 2, "this works on one"},
		{"vm recover 3", 2, "give one of --retry"},
		{"vm recover 3 --retry --delete", 2, "give one of --retry"},
		{"vm resize 3", 2, "nothing to change"},
		{"vm disk-saveas 3 first x", 2, `disk "first"`},
		{"vm wait 3 --for lunch", 2, `waiting for "lunch"`},
		{"vm tunnel 3 0", 2, `port "0"`},
		{"vm vnc broken", 5, "vm 5 (broken) has no screen"},
		{"vm show 88", 3, "vm 88 does not exist"},
		{"image create --size zero", 2, `size "zero"`},
		{"template create --cpu 1", 2, "the template has no NAME"},
		{"template update web", 2, "nothing to change"},
		{"vm disk-cache web-1 0", 2, "nothing to change"},
		{"vm disk-cache web-1 x --mode BACK", 2, `disk "x"`},
		{"vm disk-cache web-1 0 --cache-size much", 2, "--cache-size"},
		{"image prefetch tiny", 2, "give --hosts, or --all"},
		{"image prefetch tiny --all --hosts node-1", 2, "give --hosts, or --all"},
		{"image prefetch tiny --all --cancel --wait", 2, "nothing to wait for"},
		{"network create --name n --range 10.0.0.0", 2, "no size"},
		{"completion tcsh", 2, `shell "tcsh"`},
	} {
		message := c.fails(row.status, strings.Fields(row.line)...)
		if !strings.Contains(message, row.want) {
			t.Errorf("%s: %q, want %q", row.line, message, row.want)
		}
	}
	if got := c.server.Requests(); len(got) > 0 {
		t.Errorf("bad command lines asked for %q", got)
	}
	twice := aVM(8, "web-1", running)
	c.server.Put(cloud.KindVM, twice)
	if message := c.fails(2, "vm", "stop", "web-1"); !strings.Contains(message, "machines 3,8 have that name: use an id") {
		t.Error(message)
	}
}

// Some machines refuse: the others are asked all the same, every refusal is told, the first one's class counts.
func TestRefusalsOfMany(t *testing.T) {
	c := newConsole(t)
	c.server.Answer("POST /v1/vms/{id}/action", func(r *http.Request, _ []byte) (any, error) {
		switch r.PathValue("id") {
		case "4":
			return nil, fault.Errorf(fault.WrongState, "vm 4: cannot stop in PENDING")
		case "5":
			return nil, fault.Errorf(fault.NotFound, "vm 5 does not exist")
		}
		return nil, nil
	})
	message := c.fails(fault.WrongState.ExitStatus(), "vm", "stop", "3..6")
	if message != "hayloft: vm 4: cannot stop in PENDING\nhayloft: vm 5 does not exist\n" {
		t.Errorf("%q", message)
	}
	if n := len(c.server.Requests()); n != 4 {
		t.Errorf("%d requests", n)
	}
}
