package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"hayloft/internal/command"
)

// startDevices starts the daemon that names block devices and tells LVM of them, and waits until it did.
func startDevices(ctx context.Context) error {
	run := command.Exec{}
	for _, step := range []command.Cmd{
		{Name: "/lib/systemd/systemd-udevd", Args: []string{"--daemon", "--resolve-names=never"}},
		{Name: "udevadm", Args: []string{"trigger", "--action=add", "--subsystem-match=block"}},
		{Name: "udevadm", Args: []string{"settle", "--timeout=300"}},
	} {
		if _, err := run.Run(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// startNetwork brings up loopback, and the card with the address, if the command line gives it one as
// address=CIDR and gateway=IP.
func startNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	words := map[string]string{}
	for word := range strings.FieldsSeq(string(line)) {
		if name, value, ok := strings.Cut(word, "="); ok {
			words[name] = value
		}
	}
	if words["address"] == "" {
		return nil
	}
	card, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("network card: %w", err)
	}
	address, err := netlink.ParseAddr(words["address"])
	if err != nil {
		return fmt.Errorf("address %s: %w", words["address"], err)
	}
	if err := netlink.AddrAdd(card, address); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return err
	}
	if words["gateway"] == "" {
		return nil
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.ParseIP(words["gateway"])})
}
