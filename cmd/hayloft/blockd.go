package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/disk/blockd"
	"hayloft/disk/repository/drivers"
)

func newBlockdCommand(a *app) *cobra.Command {
	var stateDir, logLevel string
	logFile := false
	cmd := &cobra.Command{
		Use:   "blockd",
		Short: "Run the data path of this host (started by the agent)",
		Long: "Run the data path of this host: the caches of images and volumes, exported to the machines. The agent starts it and keeps it running;\n" +
			"machines go on while either is started again. It ends by itself when it exports nothing and nobody is connected.",
		Example: "  hayloft blockd --state-dir /var/lib/hayloft/agent/blockd\n" +
			"  hayloft blockd status --state-dir /var/lib/hayloft/agent/blockd",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBlockd(cmd.Context(), stateDir, logLevel, logFile)
		},
	}
	cmd.PersistentFlags().StringVar(&stateDir, "state-dir", "/var/lib/hayloft/agent/blockd", "directory of what the data path remembers, and of its socket")
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().BoolVar(&logFile, "log-file", false, "write the log to "+blockd.LogFile+" in the state directory, which is kept small")
	cmd.AddCommand(one("status", "Show what the data path exports and caches", "hayloft blockd status --state-dir /var/lib/hayloft/agent/blockd",
		func(cmd *cobra.Command, _ []string) error { return a.blockdStatus(cmd.Context(), stateDir) }))
	return cmd
}

func runBlockd(ctx context.Context, stateDir, logLevel string, logFile bool) error {
	log, err := newLogger("blockd", logLevel)
	if err != nil {
		return err
	}
	if logFile {
		file, err := blockd.OpenLog(stateDir)
		if err != nil {
			return err
		}
		var level slog.Level
		if err := level.UnmarshalText([]byte(logLevel)); err != nil {
			return err
		}
		log = slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: level}))
	}
	repositories := &drivers.Pool{}
	err = blockd.Run(ctx, blockd.RunConfig{Config: blockd.Config{StateDir: stateDir, Version: version, Log: log, Open: repositories.Open}})
	return errors.Join(err, repositories.Close())
}

func (a *app) blockdStatus(ctx context.Context, stateDir string) error {
	if _, err := os.Stat(stateDir); err != nil {
		return fault.Errorf(fault.NotFound, "state directory %s: %w", stateDir, err)
	}
	c := blockd.NewClient(stateDir)
	defer c.Close()
	status, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if a.structured() {
		return a.print(status)
	}
	p := &page{screen: a.out()}
	p.section("Data path")
	p.field("VERSION", status.Version)
	p.field("PROCESS", status.PID)
	p.section("Exports")
	rows(p, status.Exports, blockdExportColumns()...)
	p.section("Bases")
	rows(p, status.Bases, blockdBaseColumns()...)
	_, err = fmt.Fprint(a.stdout, p.text.String())
	return err
}

func blockdExportColumns() []column[blockd.ExportStatus] {
	type row = blockd.ExportStatus
	volume := func(f func(*row) string) func(*row) string {
		return func(e *row) string {
			if e.Volume == nil {
				return "-"
			}
			return f(e)
		}
	}
	return []column[row]{
		{title: "NAME", cell: func(e *row) string { return e.Name }},
		{title: "MODE", cell: volume(func(e *row) string {
			if e.Volume.Degraded {
				return string(e.Volume.Mode) + " (as THRU)"
			}
			return string(e.Volume.Mode)
		})},
		{title: "CLIENTS", right: true, cell: func(e *row) string { return strconv.Itoa(e.Connections) }},
		{title: "READ", right: true, cell: func(e *row) string { return bytesText(e.Read) }},
		{title: "WRITTEN", right: true, cell: func(e *row) string { return bytesText(e.Written) }},
		{title: "CACHED", right: true, cell: volume(func(e *row) string { return bytesText(e.Volume.Cached) })},
		{title: "UNDRAINED", right: true, cell: volume(func(e *row) string { return bytesText(e.Volume.Undrained) })},
		{title: "PATH", least: 20, cell: func(e *row) string { return e.Path }},
		{title: "ERROR", least: 20, cell: func(e *row) string {
			if e.Error == "" && e.Volume != nil {
				return e.Volume.Error
			}
			return e.Error
		}, paint: func(*row) color { return red }},
	}
}

func blockdBaseColumns() []column[blockd.BaseState] {
	type row = blockd.BaseState
	return []column[row]{
		{title: "DIGEST", least: 20, cell: func(b *row) string { return b.Digest }},
		{title: "HERE", right: true, cell: func(b *row) string { return bytesText(b.Status.Present) }},
		{title: "OF", right: true, cell: func(b *row) string { return bytesText(b.Status.Total) }},
		{title: "WHOLE", cell: func(b *row) string {
			if b.Status.Complete {
				return "yes"
			}
			return "no"
		}},
		{title: "FETCHED", right: true, cell: func(b *row) string { return bytesText(b.Status.Fetched) }},
		{title: "HITS", right: true, cell: func(b *row) string { return strconv.FormatInt(b.Status.Hits, 10) }},
		{title: "MISSES", right: true, cell: func(b *row) string { return strconv.FormatInt(b.Status.Misses, 10) }},
	}
}
