package address

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
)

func parse(t *testing.T, attributes string) Range {
	t.Helper()
	r, err := Parse(4, vector(attributes), Defaults{Random: func() uint32 { return 0xfffffff0 }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// vector reads "NAME=value NAME=value".
func vector(text string) map[string]string {
	m := make(map[string]string)
	for _, pair := range strings.Fields(text) {
		name, value, _ := strings.Cut(pair, "=")
		m[name] = value
	}
	return m
}

func TestNth(t *testing.T) {
	tests := []struct {
		attributes                       string
		index                            int
		mac, ip, ip6, global, ula, local string
	}{
		{"TYPE=IP4 IP=10.0.0.5 SIZE=300", 0, "02:00:0a:00:00:05", "10.0.0.5", "", "", "", ""},
		{"TYPE=IP4 IP=10.0.0.5 SIZE=300", 251, "02:00:0a:00:01:00", "10.0.1.0", "", "", "", ""},
		{"TYPE=IP4 IP=10.0.0.5 MAC=02:01:00:00:ff:ff SIZE=3", 1, "02:01:00:01:00:00", "10.0.0.6", "", "", "", ""},
		{"TYPE=ETHER MAC=0a:00:00:00:00:ff SIZE=3", 2, "0a:00:00:00:01:01", "", "", "", "", ""},
		{"TYPE=ETHER SIZE=20", 19, "02:00:ff:ff:ff:ff", "", "", "", "", ""}, // the random start makes room
		{"TYPE=IP6 MAC=02:00:00:00:00:01 GLOBAL_PREFIX=2001:db8:: ULA_PREFIX=fd00:1::/64 SIZE=9", 1,
			"02:00:00:00:00:02", "", "", "2001:db8::ff:fe00:2", "fd00:1::ff:fe00:2", "fe80::ff:fe00:2"},
		{"TYPE=IP4_6 IP=10.0.0.5 GLOBAL_PREFIX=2001:db8:: SIZE=9", 0, "02:00:0a:00:00:05", "10.0.0.5", "", "2001:db8::aff:fe00:5", "", "fe80::aff:fe00:5"},
		{"TYPE=IP4_6_STATIC IP=10.0.0.5 IP6=2001:db8::ffff PREFIX_LENGTH=64 SIZE=9", 1, "02:00:0a:00:00:06", "10.0.0.6", "2001:db8::1:0", "", "", ""},
	}
	for _, test := range tests {
		r := parse(t, test.attributes)
		a, err := r.Nth(test.index)
		if err != nil {
			t.Errorf("%s: %v", test.attributes, err)
			continue
		}
		text := func(ip netip.Addr) string {
			if !ip.IsValid() {
				return ""
			}
			return ip.String()
		}
		got := []string{a.MAC.String(), text(a.IP), text(a.IP6), text(a.Global), text(a.ULA), text(a.Link)}
		want := []string{test.mac, test.ip, test.ip6, test.global, test.ula, test.local}
		if !slices.Equal(got, want) {
			t.Errorf("%s, index %d: %q, want %q", test.attributes, test.index, got, want)
		}
		for _, ip := range []netip.Addr{a.IP, a.IP6, a.Global, a.ULA, a.Link} {
			if i, ok := r.IndexOfIP(ip); ip.IsValid() && (!ok || i != test.index) {
				t.Errorf("%s: index of %s is %d, %v", test.attributes, ip, i, ok)
			}
		}
		if i, ok := r.IndexOfMAC(a.MAC); !ok || i != test.index {
			t.Errorf("%s: index of %s is %d, %v", test.attributes, a.MAC, i, ok)
		}
	}
	r := parse(t, "TYPE=IP4 IP=10.0.0.5 SIZE=3")
	for _, index := range []int{-1, 3} {
		if _, err := r.Nth(index); !fault.Is(err, fault.Invalid) {
			t.Errorf("index %d: %v", index, err)
		}
	}
	for _, ip := range []string{"10.0.0.4", "10.0.0.8", "fe80::aff:fe00:5"} {
		if i, ok := r.IndexOfIP(netip.MustParseAddr(ip)); ok {
			t.Errorf("%s has index %d", ip, i)
		}
	}
	if mac, _ := net.ParseMAC("02:01:0a:00:00:05"); true {
		if i, ok := r.IndexOfMAC(mac); ok {
			t.Errorf("%s has index %d", mac, i)
		}
	}
}

func TestParseNamesTheBadAttribute(t *testing.T) {
	tests := []struct{ attributes, name string }{
		{"IP=10.0.0.1 SIZE=3", "TYPE is missing"},
		{"TYPE=IP5 SIZE=3", `TYPE "IP5"`},
		{"TYPE=IP4 IP=10.0.0.300 SIZE=3", `IP "10.0.0.300"`},
		{"TYPE=IP4 SIZE=3", "IP is missing"},
		{"TYPE=IP4 IP=::1 SIZE=3", `IP "::1"`},
		{"TYPE=IP4 IP=10.0.0.1", "SIZE is missing"},
		{"TYPE=IP4 IP=10.0.0.1 SIZE=0", `SIZE "0"`},
		{"TYPE=IP4 IP=10.0.0.1 SIZE=99999999", `SIZE "99999999"`},
		{"TYPE=IP4 IP=255.255.255.254 SIZE=3", `SIZE "3": goes past the end of IPv4`},
		{"TYPE=ETHER MAC=02:00:ff:ff:ff:ff SIZE=2", `SIZE "2": goes past the end of the MACs`},
		{"TYPE=IP6_STATIC IP6=2001:db8::ffff:ffff:ffff:ffff PREFIX_LENGTH=64 MAC=02:00:00:00:00:01 SIZE=2", `SIZE "2"`},
		{"TYPE=ETHER MAC=x SIZE=2", `MAC "x"`},
		{"TYPE=ETHER MAC=01:00:00:00:00:00 SIZE=2", `MAC "01`},
		{"TYPE=ETHER SIZE=2", "MAC is missing"},
		{"TYPE=IP6 MAC=02:00:00:00:00:01 GLOBAL_PREFIX=2001:db8::1 SIZE=2", `GLOBAL_PREFIX "2001:db8::1"`},
		{"TYPE=IP6 MAC=02:00:00:00:00:01 ULA_PREFIX=fd00::/48 SIZE=2", `ULA_PREFIX "fd00::/48"`},
		{"TYPE=IP6_STATIC IP6=2001:db8::1 MAC=02:00:00:00:00:01 SIZE=2", "PREFIX_LENGTH is missing"},
	}
	for _, test := range tests {
		_, err := Parse(4, vector(test.attributes), Defaults{})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "AR 4: "+test.name) {
			t.Errorf("%s: %v", test.attributes, err)
		}
	}
}

func TestOverlap(t *testing.T) {
	tests := []struct{ a, b, want string }{
		{"TYPE=IP4 IP=10.0.0.1 SIZE=10", "TYPE=IP4 IP=10.0.0.10 SIZE=10", "MAC"},
		{"TYPE=IP4 IP=10.0.0.1 SIZE=10", "TYPE=IP4 IP=10.0.0.10 MAC=02:01:00:00:00:00 SIZE=10", "IP"},
		{"TYPE=IP4 IP=10.0.0.1 SIZE=10", "TYPE=IP4 IP=10.0.0.11 SIZE=10", ""},
		{"TYPE=IP4 IP=10.0.0.11 SIZE=10", "TYPE=IP4 IP=10.0.0.1 SIZE=10", ""},
		{"TYPE=IP6_STATIC IP6=2001:db8::1 PREFIX_LENGTH=64 MAC=02:00:00:00:00:01 SIZE=10",
			"TYPE=IP6_STATIC IP6=2001:db8::5 PREFIX_LENGTH=64 MAC=02:00:01:00:00:01 SIZE=10", "IP6"},
	}
	for _, test := range tests {
		a, b := parse(t, test.a), parse(t, test.b)
		if got := Overlap(a, b); got != test.want {
			t.Errorf("%s and %s: %q, want %q", test.a, test.b, got, test.want)
		}
		if got := Overlap(b, a); got != test.want {
			t.Errorf("%s and %s: %q, want %q", test.b, test.a, got, test.want)
		}
	}
}

func TestSubnet(t *testing.T) {
	s, err := ParseSubnet(vector("NETWORK_ADDRESS=10.0.0.0 NETWORK_MASK=255.255.255.0 GATEWAY=10.0.0.1 GATEWAY6=2001:db8::1"))
	if err != nil || s.Host().String() != "10.0.0.1/24" || s.Mask() != "255.255.255.0" {
		t.Fatalf("%+v, %v", s, err)
	}
	for ip, want := range map[string]bool{
		"10.0.0.0": true, "10.0.0.1": true, "10.0.0.255": true, "10.0.0.2": false, "10.0.1.0": false, "2001:db8::1": true, "2001:db8::": false,
	} {
		if got := s.Reserved(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s reserved: %v", ip, got)
		}
	}
	if s, err := ParseSubnet(vector("NETWORK_MASK=31")); err != nil || s.Reserved(netip.MustParseAddr("10.0.0.0")) {
		t.Errorf("/31: %+v, %v", s, err)
	}
	for attributes, name := range map[string]string{
		"NETWORK_MASK=255.0.255.0": "NETWORK_MASK",
		"NETWORK_MASK=33":          "NETWORK_MASK",
		"GATEWAY=::1":              "GATEWAY",
		"GATEWAY6=10.0.0.1":        "GATEWAY6",
		"NETWORK_ADDRESS=x":        "NETWORK_ADDRESS",
		"NETWORK_ADDRESS=10.0.0.1 NETWORK_MASK=255.255.255.0": "NETWORK_ADDRESS",
	} {
		if _, err := ParseSubnet(vector(attributes)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), name+" ") {
			t.Errorf("%s: %v", attributes, err)
		}
	}
}

func TestNextFreeSkipsReservedAndWraps(t *testing.T) {
	r := parse(t, "TYPE=IP4 IP=10.0.0.0 SIZE=258")
	s, _ := ParseSubnet(vector("NETWORK_MASK=24 GATEWAY=10.0.0.2"))
	used := IndicesOf(1, 3)
	var order []int
	for start := 0; ; {
		index, err := r.NextFree(used, start, s)
		if err != nil {
			if !fault.Is(err, fault.OutOfSpace) {
				t.Fatal(err)
			}
			break
		}
		used.Add(index)
		order = append(order, index)
		start = index + 1
	}
	// Not 0 and 256 (networks), 2 (gateway), 255 (broadcast); 1 and 3 were used.
	if order[0] != 4 || order[len(order)-1] != 257 || len(order) != 258-6 {
		t.Errorf("%d leases: %v", len(order), order)
	}
	used.Remove(7)
	if index, err := r.NextFree(used, 200, s); index != 7 || err != nil {
		t.Errorf("after freeing 7: %d, %v", index, err)
	}
}

func TestEveryIndexIsFoundAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]Type{IP4, IP6, IP6Static, Dual, DualStatic, Ether}).Draw(t, "type")
		attributes := map[string]string{
			"TYPE": string(kind), "SIZE": rapid.StringMatching(`[1-9][0-9]{0,4}`).Draw(t, "size"),
			"IP":            netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip"))).String(),
			"IP6":           "2001:db8::" + rapid.StringMatching(`[1-9a-f]{1,4}`).Draw(t, "ip6"),
			"PREFIX_LENGTH": "64", "GLOBAL_PREFIX": "2001:db8:1::",
		}
		random := rapid.Uint32().Draw(t, "random")
		r, err := Parse(1, attributes, Defaults{Random: func() uint32 { return random }})
		if err != nil {
			if !strings.Contains(err.Error(), "goes past the end of IPv4") {
				t.Fatal(err)
			}
			return
		}
		again, err := Parse(1, r.Attributes(), Defaults{})
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
		index := rapid.IntRange(0, r.Size-1).Draw(t, "index")
		a, err := r.Nth(index)
		if err != nil {
			t.Fatal(err)
		}
		if i, ok := r.IndexOfMAC(a.MAC); !ok || i != index {
			t.Fatalf("MAC %s of %d is %d, %v", a.MAC, index, i, ok)
		}
		for _, ip := range []netip.Addr{a.IP, a.IP6, a.Global, a.Link} {
			if i, ok := r.IndexOfIP(ip); ip.IsValid() && (!ok || i != index) {
				t.Fatalf("%s of %d is %d, %v", ip, index, i, ok)
			}
		}
	})
}

func BenchmarkNextFree65536(b *testing.B) {
	r, _ := Parse(0, vector("TYPE=IP4 IP=10.0.0.0 SIZE=65536"), Defaults{})
	used := new(Indices)
	for i := range 65000 {
		used.Add(i)
	}
	s, _ := ParseSubnet(vector("NETWORK_MASK=16 GATEWAY=10.0.0.1"))
	for b.Loop() {
		if _, err := r.NextFree(used, 0, s); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("IP4", "10.0.0.1", "", "", "10", "24")
	f.Add("IP4_6_STATIC", "10.0.0.1", "2001:db8::1", "02:00:00:00:00:01", "65536", "255.255.255.0")
	f.Fuzz(func(t *testing.T, kind, ip, ip6, mac, size, mask string) {
		attributes := map[string]string{"TYPE": kind, "IP": ip, "IP6": ip6, "MAC": mac, "SIZE": size, "PREFIX_LENGTH": "64",
			"GLOBAL_PREFIX": ip6, "NETWORK_MASK": mask, "GATEWAY": ip, "NETWORK_ADDRESS": ip}
		s, err := ParseSubnet(attributes)
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatal(err)
		}
		r, err := Parse(0, attributes, Defaults{})
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if last := r.Last(); Overlap(r, r) == "" || len(last.MAC) != 6 {
			t.Fatalf("%+v ends with %+v", r, last)
		}
		if i, err := r.NextFree(new(Indices), 0, s); err == nil && i >= r.Size {
			t.Fatalf("free index %d of %d", i, r.Size)
		}
	})
}
