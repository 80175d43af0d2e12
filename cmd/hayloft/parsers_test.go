package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hayloft/cloud/fault"
	"hayloft/cloud/template"
)

func TestAddressPlans(t *testing.T) {
	for _, row := range []struct {
		ranges, gateway, netmask string
		nat                      bool
		want                     string // or a part of the error
	}{
		{"10.0.0.0/24", "", "", false, "10.0.0.1+254 of 10.0.0.0/24"},
		{"10.0.0.0/24", "", "", true, "10.0.0.2+253 of 10.0.0.0/24 by 10.0.0.1"},
		{"10.0.0.0/24", "10.0.0.254", "", true, "10.0.0.1+253 of 10.0.0.0/24 by 10.0.0.254"},
		{"10.0.0.0/24", "10.0.0.9", "", false, "10.0.0.1+8 10.0.0.10+245 of 10.0.0.0/24 by 10.0.0.9"},
		{"10.0.0.0/30", "10.0.0.1/30", "", false, "10.0.0.2+1 of 10.0.0.0/30 by 10.0.0.1"},
		{"10.0.0.10/50", "", "", false, "10.0.0.10+50 of 10.0.0.0/24"},
		{"10.0.0.10/20", "", "", false, "10.0.0.10+20 of 10.0.0.0/24"},
		{"10.0.0.0+20", "", "", false, "10.0.0.0+20 of 10.0.0.0/24"},
		{"10.0.0.10+5 10.0.0.9+3", "10.0.0.10", "", false, "10.0.0.11+4 10.0.0.9+1 10.0.0.11+1 of 10.0.0.0/24 by 10.0.0.10"},
		{"10.0.0.250/300", "10.0.0.1", "", false, "10.0.0.250+300 of 10.0.0.0/22 by 10.0.0.1"},
		{"10.0.0.10/50", "10.0.0.1/16", "", false, "10.0.0.10+50 of 10.0.0.0/16 by 10.0.0.1"},
		{"10.0.0.10/50", "", "255.255.255.128", false, "10.0.0.10+50 of 10.0.0.0/25"},
		{"", "", "", false, ""},
		{"10.0.0.10/50", "10.1.0.1", "24", false, "gateway 10.1.0.1 is not inside 10.0.0.0/24"},
		{"10.0.0.200/100", "", "24", false, "range 10.0.0.200 to 10.0.1.43 is not inside 10.0.0.0/24"},
		{"10.0.0.0/24 10.0.9.0/24", "", "", false, "is not inside 10.0.0.0/24"},
		{"10.0.0.0/31", "", "", false, "a network from /8 to /30"},
		{"255.255.255.250/100", "", "", false, "beyond the last address"},
		{"10.0.0.1/0", "", "", false, "not a number from 1"},
		{"10.0.0.1/99999999", "", "", false, "not a number from 1"},
		{"fe80::1/64", "", "", false, "not an IPv4 address"},
		{"10.0.0.1", "", "", false, "no size"},
		{"10.0.0.10/50", "10.0.0.x", "", false, `gateway "10.0.0.x"`},
		{"10.0.0.10/50", "", "255.0.255.0", false, `netmask "255.0.255.0"`},
	} {
		p := addressPlan{wantGateway: row.nat}
		err := p.read(strings.Fields(row.ranges), row.gateway, row.netmask)
		var got string
		if err != nil {
			if got = err.Error(); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: class %s", row.ranges, fault.ClassOf(err))
			}
			if !strings.Contains(got, row.want) || row.want == "" {
				t.Errorf("%s: %s, want %s", row.ranges, got, row.want)
			}
			continue
		}
		for _, r := range p.ranges {
			got += fmt.Sprintf("%s+%d ", r.first, r.size)
		}
		if p.network.IsValid() {
			got += "of " + p.network.String()
		}
		if p.gateway.IsValid() {
			got += " by " + p.gateway.String()
		}
		if got != row.want {
			t.Errorf("%s %s %s: %q, want %q", row.ranges, row.gateway, row.netmask, got, row.want)
		}
	}
}

// What a plan writes never leases the gateway, and lies in the network that it names.
func TestAddressPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		octet := rapid.IntRange(0, 255)
		first := fmt.Sprintf("10.%d.%d.%d", octet.Draw(t, "b"), octet.Draw(t, "c"), octet.Draw(t, "d"))
		sep := rapid.SampledFrom([]string{"/", "+"}).Draw(t, "separator")
		p := addressPlan{wantGateway: rapid.Bool().Draw(t, "nat")}
		gateway := ""
		if rapid.Bool().Draw(t, "has gateway") {
			gateway = fmt.Sprintf("10.%d.%d.%d", octet.Draw(t, "gb"), octet.Draw(t, "gc"), octet.Draw(t, "gd"))
		}
		if err := p.read([]string{first + sep + fmt.Sprint(rapid.IntRange(1, 5000).Draw(t, "size"))}, gateway, ""); err != nil {
			return
		}
		var made template.Template
		p.apply(&made)
		address, _ := made.Get("NETWORK_ADDRESS")
		network := netip.PrefixFrom(netip.MustParseAddr(address), p.network.Bits())
		gatewayText, _ := made.Get("GATEWAY")
		for _, r := range made.GetAll("AR") {
			ip, _ := r.Get("IP")
			size, _, err := r.Int("SIZE")
			if err != nil || size < 1 {
				t.Fatalf("size %d, %v", size, err)
			}
			for n, at := 0, netip.MustParseAddr(ip); n < size; n, at = n+1, at.Next() {
				if at.String() == gatewayText || !network.Contains(at) {
					t.Fatalf("address %s in %s with gateway %s", at, network, gatewayText)
				}
			}
		}
	})
}

func TestValues(t *testing.T) {
	for got, want := range map[string]string{
		bytesText(0): "0B", bytesText(1023): "1023B", bytesText(1 << 20): "1M", bytesText(3 << 29): "1.5G", bytesText(150<<30 + 1): "150G", bytesText(5 << 50): "5P",
		ageText(-1): "0d 00h00", ageText(49*3600e9 + 61e9): "2d 01h01",
		lapseText(12345678): "12ms", lapseText(1234567890): "1.23s", lapseText(61.4e9): "1m1s",
		idsText([]int{9, 3, 4, 5, 5, 7, 8}): "3..5,7..9", idsText(nil): "", idsText([]int{2, 1}): "1,2",
		plural(1, "machine"): "1 machine", plural(0, "machine"): "0 machines",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for text, want := range map[string]int{"512": 512, "512M": 512, "512MB": 512, "2g": 2048, "1.5G": 1536, " 1T ": 1 << 20,
		"": 0, "0": 0, "-1G": 0, "G": 0, "1K": 0, "NaN": 0, "inf": 0, "1e40": 0} {
		got, err := megabytes(text)
		if (err != nil) != (want == 0) || err == nil && got != want {
			t.Errorf("megabytes(%q) = %d, %v", text, got, err)
		}
	}
}

// What a list of ids is written as, commands read back.
func TestIDsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfDistinct(rapid.IntRange(0, 50), rapid.ID[int]).Filter(func(ids []int) bool { return len(ids) > 0 }).Draw(t, "ids")
		back, err := machines(t.Context(), nil, []string{idsText(ids)})
		if err != nil || idsText(back) != idsText(ids) || len(back) != len(ids) {
			t.Fatalf("%v became %v, %v", ids, back, err)
		}
	})
}

func FuzzSpan(f *testing.F) {
	for _, seed := range []string{"3", "3..7", "..", "-1", "7..3", "1..99999999999999999999", "web..1", "0..9999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, last, numbers, err := span(text)
		if err == nil && numbers && (first < 0 || last < first || last-first >= largestSpan) {
			t.Errorf("%q is %d..%d", text, first, last)
		}
	})
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b]0;title\x07\tb\r\n\u009bc"); got != "a]0;title b\nc" {
		t.Errorf("%q", got)
	}
	if got := shellQuote("/it's 100%"); got != `'/it'\''s 100%%'` {
		t.Errorf("%s", got)
	}
}
