package contextdisk

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func machine() Input {
	return Input{
		VMID: 7, Name: "web_1", UID: 3, GID: 100, UNAME: "ann", GNAME: "barn",
		Template: map[string]string{"CPU": "0.5", "ROLE": "front"},
		User:     map[string]string{"SSH_PUBLIC_KEY": "ssh-ed25519 AAAA ann"},
		NICs: []NIC{
			{
				ID:         0,
				Attributes: map[string]string{"MAC": "02:00:0a:00:00:05", "IP": "10.0.0.5", "NETWORK": "blue", "NETWORK_ID": "1", "DNS": "9.9.9.9"},
				AR:         map[string]string{"IP": "10.0.0.2", "GATEWAY": "10.0.0.254", "IP6": "2001:db8::1"},
				Network: map[string]string{"DNS": "1.1.1.1", "GATEWAY": "10.0.0.1", "NETWORK_MASK": "255.255.255.0",
					"NETWORK_ADDRESS": "10.0.0.0", "GUEST_MTU": "1400", "MTU": "9000", "SEARCH_DOMAIN": "barn.example"},
				Aliases: []NIC{{ID: 0, Attributes: map[string]string{"MAC": "02:00:0a:01:00:01", "IP": "10.1.0.1"}}},
			},
			{
				ID:         2,
				Attributes: map[string]string{"MAC": "02:00:00:00:00:09", "NETWORK": "red net", "NETWORK_ID": "2", "IP6_GLOBAL": "2001:db8::9", "IP6_ULA": "fd00::9"},
				AR:         map[string]string{"IP": "10.9.0.1", "PREFIX_LENGTH": "64"},
				Network:    map[string]string{"GATEWAY6": "2001:db8::1", "DNS": "2.2.2.2"},
			},
		},
	}
}

func TestVariablesOfNICs(t *testing.T) {
	in := machine()
	in.Context = map[string]string{"NETWORK": "yes", "TARGET": "hda", "ETH2_METRIC": "50"}
	got := Variables(in)
	want := map[string]string{
		"NETWORK": "yes", "TARGET": "hda", "SET_HOSTNAME": "web-1",
		"ETH0_MAC": "02:00:0a:00:00:05", "ETH0_IP": "10.0.0.5", "ETH0_MASK": "255.255.255.0", "ETH0_NETWORK": "10.0.0.0",
		"ETH0_GATEWAY": "10.0.0.254", "ETH0_DNS": "9.9.9.9", "ETH0_SEARCH_DOMAIN": "barn.example", "ETH0_MTU": "1400",
		"ETH0_ALIAS0_MAC": "02:00:0a:01:00:01", "ETH0_ALIAS0_IP": "10.1.0.1",
		"ETH2_MAC": "02:00:00:00:00:09", "ETH2_IP6": "2001:db8::9", "ETH2_IP6_ULA": "fd00::9", "ETH2_IP6_PREFIX_LENGTH": "64",
		"ETH2_IP6_GATEWAY": "2001:db8::1", "ETH2_DNS": "2.2.2.2", "ETH2_METRIC": "50",
	}
	// The rest of the set is there too, empty.
	all := strings.Fields("MAC IP MASK NETWORK GATEWAY DNS SEARCH_DOMAIN MTU METRIC METHOD VLAN_ID ROUTES EXTERNAL VROUTER_IP " +
		"VROUTER_MANAGEMENT IP6 IP6_ULA IP6_GATEWAY IP6_METRIC IP6_METHOD IP6_PREFIX_LENGTH VROUTER_IP6")
	for _, prefix := range []string{"ETH0_", "ETH0_ALIAS0_", "ETH2_"} {
		for _, name := range all {
			if _, ok := want[prefix+name]; !ok {
				want[prefix+name] = ""
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(in.Context) != 3 {
		t.Error("the input was changed")
	}
	in.Context = map[string]string{"SET_HOSTNAME": "own", "NETWORK": "NO"}
	if diff := cmp.Diff(in.Context, Variables(in)); diff != "" {
		t.Error(diff)
	}
}

func TestSubstitution(t *testing.T) {
	tests := []struct{ text, want string }{
		{"$NAME-$VMID $UID:$UNAME $GID:$GNAME", "web_1-7 3:ann 100:barn"},
		{"$NIC[IP]", "10.0.0.5"},
		{`$NIC[IP6_GLOBAL, NETWORK="red net"]!`, "2001:db8::9!"},
		{"$NIC[mac,NETWORK_ID=2]", "02:00:00:00:00:09"},
		{`$NIC[IP, NETWORK="none"]`, ""},
		{"$NETWORK[DNS, NETWORK_ID=1]", "1.1.1.1"},
		{`$NETWORK[DNS, NETWORK="red net"]`, "2.2.2.2"},
		{"$USER[SSH_PUBLIC_KEY]", "ssh-ed25519 AAAA ann"},
		{"$TEMPLATE[ROLE]$TEMPLATE[NOTHING]", "front"},
		{`echo "$HOME ${NAME} $NAMES $1 $$ $(id) \$x"; $`, `echo "$HOME ${NAME} $NAMES $1 $$ $(id) \$x"; $`},
		{"$NIC $NIC[IP $FILE[IMAGE_ID=3]", "$NIC $NIC[IP $FILE[IMAGE_ID=3]"},
		{"ünï$NAME日本", "ünïweb_1日本"},
	}
	in := machine()
	for _, test := range tests {
		if got := in.substitute(test.text); got != test.want {
			t.Errorf("%s: %q, want %q", test.text, got, test.want)
		}
	}
	in.Name = "$VMID"
	if got := in.substitute("$NAME"); got != "$VMID" {
		t.Errorf("a value was read again: %q", got)
	}
}

func FuzzSubstitute(f *testing.F) {
	f.Add(`$NIC[IP, NETWORK="a]"] $NAME $`)
	f.Add(`$NETWORK[DNS`)
	f.Fuzz(func(t *testing.T, text string) {
		got := machine().substitute(text)
		if !strings.Contains(text, "$") && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func TestHostName(t *testing.T) {
	long := strings.Repeat("a", 70)
	for name, want := range map[string]string{
		"web-1": "web-1", "Web 1": "Web-1", "_x_": "x", "a.b.example": "a.b.example", "..a..": "a", "日本": "one-7", "": "one-7",
		"a\nb'c": "a-b-c", long: long[:63], "-": "one-7",
	} {
		if got := HostName(name, 7); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if got := HostName(strings.Repeat("abcdefgh.", 40), 7); len(got) > 253 || strings.HasSuffix(got, ".") {
		t.Errorf("%d characters: %s", len(got), got)
	}
}
