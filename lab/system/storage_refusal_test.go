package system

import (
	"maps"
	"os"
	"path/filepath"
	"strings"

	"hayloft/cloud/fault"
)

// with is options, some of them changed; an empty value leaves one out.
func with(options map[string]string, changes ...string) map[string]string {
	all := maps.Clone(options)
	if all == nil {
		all = map[string]string{}
	}
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		all[name] = value
		if value == "" {
			delete(all, name)
		}
	}
	return all
}

func (s *storage) place(name string) *elsewhere {
	for _, e := range s.places {
		if e.name == name {
			return e
		}
	}
	s.Fatalf("there is no datastore %s", name)
	return nil
}

// refusesDatastores asks for datastores that could never be used; none is made.
func (s *storage) refusesDatastores() {
	s.Helper()
	ssh, s3, rbd := s.place("ssh"), s.place("s3"), s.place("rbd")
	for _, c := range []struct {
		driver, path string
		options      map[string]string
		class        fault.Class
		words        []string
	}{
		{"floppy", "/a", nil, fault.Unsupported, []string{`"floppy"`, "path, nfs, ssh, http, s3, iscsi, rbd, url"}},
		{"ssh", "/srv/images", nil, fault.Invalid, []string{"HOST", "[user@]host[:port]"}},
		{"ssh", "srv/images", ssh.options, fault.Invalid, []string{"BASE_PATH", `"srv/images"`, "absolute"}},
		{"ssh", "/srv/images", with(ssh.options, "PORT=99999"), fault.Invalid, []string{"PORT", "99999"}},
		{"s3", "https://127.0.0.1", s3.options, fault.Invalid, []string{"BASE_PATH", "bucket"}},
		{"s3", s3.path, with(s3.options, "SECRET_KEY_FILE="), fault.Invalid, []string{"ACCESS_KEY_ID", "SECRET_KEY_FILE"}},
		{"s3", "http://127.0.0.1/golden", with(s3.options, "CA_FILE="), fault.Invalid, []string{"https://", "PLAIN_CREDENTIALS"}},
		{"s3", s3.path, with(s3.options, "CA_FILE=/no/such/ca.pem"), fault.Invalid, []string{"CA_FILE", "/no/such/ca.pem"}},
		{"rbd", "pool/space/more", rbd.options, fault.Invalid, []string{"BASE_PATH", "POOL"}},
		{"rbd", "rbd", with(rbd.options, "CEPH_USER=client.hayloft"), fault.Invalid, []string{"CEPH_USER", "client."}},
		{"rbd", "rbd", with(rbd.options, "CEPH_KEYRING=keyring"), fault.Invalid, []string{"CEPH_KEYRING", "absolute"}},
		{"url", s.images, nil, fault.Invalid, []string{"BASE_PATH", "raw", "driver path"}},
		{"url", s.images, map[string]string{"FORMAT": "floppy"}, fault.Invalid, []string{"FORMAT", "floppy", "qcow2"}},
		{"url", "ftp://host/images", map[string]string{"FORMAT": "vmdk"}, fault.Invalid, []string{"ftp", "nfs"}},
		{"http", "images", nil, fault.Invalid, []string{"BASE_PATH", "URL"}},
		{"nfs", "/srv/images", nil, fault.Invalid, []string{"BASE_PATH", "server:/directory"}},
		{"iscsi", "images", map[string]string{"HOST": "root@"}, fault.Invalid, []string{"HOST", "root@"}},
	} {
		s.refused(c.class, append(c.words, "never"), datastoreArgs("never", c.driver, c.path, c.options)...)
	}
	for _, driver := range []string{"url", "http"} {
		s.refused(fault.Unsupported, []string{"never", driver, "SYSTEM_DS"},
			append(datastoreArgs("never", driver, "https://127.0.0.1/images", map[string]string{"FORMAT": "vmdk"}), "--type", "system")...)
	}
	s.refused(fault.NotFound, []string{"SCHED_DS_REQUIREMENTS", "0 (system)"}, "vm", "create", "--file",
		s.file("nowhere.tmpl", []byte(s.machine("tiny")+`SCHED_DS_REQUIREMENTS="DS_MAD = s3"`)))
	s.datastore(s3)
	s.refused(fault.Exists, []string{"never", s3.path, s3.name}, datastoreArgs("never", "s3", s3.path, s3.options)...)
	s.refused(fault.Unsupported, []string{"persistent", "s3"}, "image", "create", "--name", "never", "--type", "DATABLOCK", "--size", "1", "--persistent", "-d", s3.name)
	s.must("datastore", "delete", s3.name)
	list, err := s.client.Datastores(s.ctx)
	if err != nil || len(list) != 3 {
		s.Errorf("there are %d datastores, %v", len(list), err)
	}
}

// refusesStrangers has storage servers that do not let us in or are not there: whoever asks is told.
func (s *storage) refusesStrangers() {
	s.Helper()
	ssh, s3, rbd := s.place("ssh"), s.place("s3"), s.place("rbd")
	open := filepath.Join(s.T.TempDir(), "open")
	if err := os.WriteFile(open, []byte("s3cret\n"), 0o644); err != nil {
		s.Fatal(err)
	}
	strange := s.secretFile("strange.keyring", "[client.hayloft]\n\tkey = AQBhYmNkAAAAABAAYWJjZGVmZ2hpamtsbW5vcA==")
	wrong := s.secretFile("wrong.secret", "wrong")
	driver := ""
	for _, c := range []struct {
		driver, path string
		options      map[string]string
		class        fault.Class
		words        []string
	}{
		{"ssh", ssh.path, with(ssh.options, "KEY_FILE="+s.sshd.StrangerFile), fault.Permission, []string{"127.0.0.1", "let root in", s.sshd.StrangerFile}},
		{"ssh", ssh.path, with(ssh.options, "KNOWN_HOSTS_FILE="+s.sshd.OtherHostsFile), fault.Permission, []string{"127.0.0.1", "key", s.sshd.OtherHostsFile}},
		{"ssh", ssh.path, with(ssh.options, "KNOWN_HOSTS_FILE="+s.sshd.EmptyHostsFile), fault.Permission, []string{"127.0.0.1", "key", s.sshd.EmptyHostsFile}},
		{"ssh", ssh.path, with(ssh.options, "KEY_FILE=/no/such/key"), fault.Permission, []string{"/no/such/key"}},
		{"ssh", ssh.path, with(ssh.options, "HOST=root@127.0.0.1:1"), fault.Unavailable, []string{"127.0.0.1:1", "refused"}},
		{"ssh", ssh.path + "/nowhere", ssh.options, fault.Unavailable, []string{ssh.path + "/nowhere"}},
		{"s3", s3.path, with(s3.options, "SECRET_KEY_FILE="+wrong), fault.Permission, []string{s3.path}},
		{"s3", s3.path, with(s3.options, "SECRET_KEY_FILE="+open), fault.Permission, []string{"SECRET_KEY_FILE", open}},
		{"s3", s3.path, with(s3.options, "ACCESS_KEY_ID=nobody"), fault.Permission, []string{s3.path}},
		{"s3", strings.Replace(s3.path, "/images/", "/imagez/", 1), s3.options, fault.Unavailable, []string{"imagez"}},
		{"s3", s3.path, with(s3.options, "CA_FILE="), fault.Permission, []string{"certificate"}},
		{"rbd", rbd.path, with(rbd.options, "CEPH_KEYRING="+strange), fault.Permission, []string{"client.hayloft"}},
		{"rbd", rbd.path, with(rbd.options, "CEPH_USER=nobody"), fault.Permission, []string{"nobody"}},
		{"rbd", rbd.path, with(rbd.options, "CEPH_CONF=/no/such/ceph.conf"), fault.Unavailable, []string{"/no/such/ceph.conf"}},
		{"rbd", "nopool", rbd.options, fault.Unavailable, []string{"nopool"}},
	} {
		args := datastoreArgs("strange", c.driver, c.path, c.options)
		if c.driver == driver { // of each driver one is asked for later
			status, _, said := s.cli(args...)
			if status != 0 {
				s.Fatalf("hayloft %s: exit status %d: %s", strings.Join(args, " "), status, said)
			}
			s.says("datastore create", said, append(c.words, "warning: datastore", "cannot be used yet")...)
		} else {
			s.must(append(args, "--no-check")...)
			s.says("datastore show", s.must("datastore", "show", "strange"), append(c.words, "ERROR")...)
		}
		driver = c.driver
		s.refused(c.class, append(c.words, "never"), "image", "create", "--name", "never", "--type", "DATABLOCK", "--size", "1", "-d", "strange")
		s.must("image", "delete", "never", "--wait") // it never had anything there
		s.must("datastore", "delete", "strange")
	}
	for _, e := range s.places {
		if left := s.behind(e); len(left) > 0 {
			s.Errorf("%s: strangers left %q", e.name, left)
		}
	}
}
