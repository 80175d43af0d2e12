// Command hayloft deploys fleets of virtual machines and containers from golden images. Each subcommand
// calls one room: up, server and agent run the processes, all others are clients of the JSON interface.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second one ends the process at once
	status := newApp().run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}
