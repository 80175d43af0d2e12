package main

import (
	"os"

	"github.com/spf13/cobra"

	"hayloft/disk/repository/ssh/plaindata"
)

func newSFTPDataCommand(a *app) *cobra.Command {
	var base string
	cmd := &cobra.Command{
		Use:   "sftp-data",
		Short: "Serve the files of an ssh datastore without encryption (started over SSH by hosts)",
		Long: "Serve the regular files below a directory to one host of a network that is trusted, without encryption. Hosts start it over SSH where\n" +
			"the datastore says PLAIN_DATA = YES, and hand it a secret on its standard input; it ends with their connection.",
		Example: "  hayloft sftp-data --base /var/lib/images",
		Args:    cobra.NoArgs,
		Hidden:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := plaindata.ServerConfig{Base: base, Stdin: a.stdin, Stdout: a.stdout}
			return plaindata.Serve(cmd.Context(), c.OfSSH(os.Getenv("SSH_CONNECTION")))
		},
	}
	cmd.Flags().StringVar(&base, "base", "", "directory of the datastore")
	_ = cmd.MarkFlagRequired("base")
	return cmd
}
