package golden

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"testing"
)

func TestKernelPackage(t *testing.T) {
	cases := map[string]string{
		"linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n": "linux-image-6.1.0-56-cloud-amd64",
		"linux-image-cloud-amd64\n  Depends: linux-base\n":                       "",
		"": "",
	}
	for text, want := range cases {
		if got := kernelPackage(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseURIs(t *testing.T) {
	text := "'http://x/busybox-static_1.35.0-4%2bb1_amd64.deb' busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 SHA256:3d\n" +
		"\nnonsense\n'http://x/zlib1g.deb' zlib1g_1.2_amd64.deb 1 SHA256:00\n"
	want := map[string]string{"busybox-static": "1:1.35.0-4+b1", "zlib1g": "1.2"}
	if got := parseURIs(text); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func signed(body, signature []byte) []byte {
	info := make([]byte, signatureTail)
	binary.BigEndian.PutUint32(info[8:], uint32(len(signature)))
	return slices.Concat(body, signature, info, []byte(signatureMagic))
}

func TestStripSignature(t *testing.T) {
	body := []byte("\x7fELF module")
	tooLong := signed(body, nil)
	binary.BigEndian.PutUint32(tooLong[len(body)+8:], 1<<31)
	cases := []struct {
		name     string
		in, want []byte
	}{
		{"signed", signed(body, []byte("signature")), body},
		{"not signed", body, body},
		{"length beyond the file", tooLong, tooLong},
		{"only the mark", []byte(signatureMagic), []byte(signatureMagic)},
		{"empty", nil, nil},
	}
	for _, c := range cases {
		if got := stripSignature(c.in); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func FuzzStripSignature(f *testing.F) {
	f.Add(signed([]byte("body"), []byte("sig")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if got := stripSignature(data); !bytes.HasPrefix(data, got) {
			t.Errorf("%q is no beginning of %q", got, data)
		}
	})
}

func TestClosureListsNearestFirst(t *testing.T) {
	all := map[string]module{
		"virtio_net":   {Name: "virtio_net", Depends: []string{"virtio_ring", "net_failover"}},
		"net_failover": {Name: "net_failover", Depends: []string{"failover"}},
		"virtio_ring":  {Name: "virtio_ring"},
		"failover":     {Name: "failover"},
	}
	got := closure(all, all["virtio_net"])
	if len(got) != 3 || slices.Index(got, "net_failover") > slices.Index(got, "failover") {
		t.Errorf("%v: want three modules, net_failover before failover", got)
	}
}

func TestMBR(t *testing.T) {
	mbr, err := makeMBR([]byte("code"), tinyLayout)
	if err != nil {
		t.Fatal(err)
	}
	if len(mbr) != 512 || mbr[510] != 0x55 || mbr[511] != 0xaa || !bytes.HasPrefix(mbr, []byte("code")) {
		t.Errorf("not a boot sector: % x", mbr)
	}
	end := func(slot int) int64 {
		p := mbr[446+16*slot:]
		return int64(binary.LittleEndian.Uint32(p[8:])+binary.LittleEndian.Uint32(p[12:])) * sector
	}
	if end(0) != rootStart || end(1) != int64(rootStart+rootSize) {
		t.Errorf("partitions end at %d and %d, want %d and %d", end(0), end(1), rootStart, int64(rootStart+rootSize))
	}
	if _, err := makeMBR(make([]byte, bootCode+1), tinyLayout); err == nil {
		t.Error("boot code over the partition table was taken")
	}
}
