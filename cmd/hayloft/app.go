package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/server/api/client"
)

// app is what all commands share: where they read and write, and the global flags.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
	screen         func(io.Writer) screen
	within         func(context.Context, time.Duration) (context.Context, context.CancelFunc) // bounds a wait

	consolePatience, storagePatience time.Duration

	endpoint    string
	credentials string
	output      format
	noColor     bool
	quiet       bool
}

func newApp() *app {
	return &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, now: time.Now, screen: screenOf, within: context.WithTimeout,
		consolePatience: consolePatience, storagePatience: storagePatience}
}

// interrupted is the exit status after Ctrl-C, as shells have it.
const interrupted = 130

// exitStatus ends the program with a status and no message, that of a program run in its place.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// run carries out one command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(a.stderr, "hayloft: interrupted")
		return interrupted
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(a.stderr, "hayloft: %s\n", printable(strings.TrimRight(line, "\n")))
	}
	return fault.ClassOf(err).ExitStatus()
}

func newRootCommand(a *app) *cobra.Command {
	root := group("hayloft", "Deploy fleets of machines from golden images",
		`  hayloft vm create web --count 20 --wait=ssh
  hayloft vm list --watch
  hayloft image create --name tiny --path /images/tiny.img`)
	root.Long = `Hayloft deploys fleets of virtual machines and containers from golden images.

Commands talk to the server at --endpoint. The exit status tells what went wrong: ` + exitStatuses() + `.`
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelpCommand(root))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, "%w", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoint, "endpoint", "", "server: unix:///path/api.sock or https://host:port (default $HAYLOFT_ENDPOINT, else "+client.DefaultEndpoint+")")
	flags.StringVar(&a.credentials, "credentials", "", "directory with ca.crt, client.crt and client.key, for https (default $HAYLOFT_CREDENTIALS)")
	flags.VarP(&a.output, "output", "o", "json, yaml, name or id instead of a table")
	flags.BoolVar(&a.noColor, "no-color", false, "no colours (nor with $NO_COLOR)")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress, and only ids of what is created")
	completeWords(root, "output", formats...)
	root.AddCommand(
		newVMCommand(a), newHostCommand(a), newImageCommand(a), newDatastoreCommand(a), newTemplateCommand(a),
		newNetworkCommand(a), newClusterCommand(a), newVersionCommand(a), newCompletionCommand(a),
		newUpCommand(), newDownCommand(), newCredentialsCommand(), newServerCommand(), newAgentCommand(),
		newBlockdCommand(a), newSFTPDataCommand(a),
	)
	classify(root)
	return root
}

func exitStatuses() string {
	var list []string
	for class := fault.Internal; class <= fault.Corrupt; class++ {
		list = append(list, fmt.Sprintf("%d %s", class.ExitStatus(), class))
	}
	return strings.Join(append(list, fmt.Sprintf("%d interrupted", interrupted)), ", ")
}

// connect makes the client that the global flags describe.
func (a *app) connect() (*client.Client, error) {
	return client.New(client.Config{Endpoint: a.endpoint, Credentials: a.credentials})
}

// action is the body of a command that talks to the server.
type action func(ctx context.Context, c *client.Client, args []string) error

func (a *app) remote(do action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd.Context(), c, args)
	}
}
