package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
)

// usageError is an error in a command line: it points to the command's help.
func usageError(cmd *cobra.Command, text string, args ...any) error {
	return fault.Errorf(fault.Invalid, text+" (see %q)", append(args, cmd.CommandPath()+" --help")...)
}

// group is a command that only has subcommands.
func group(use, short, example string, aliases ...string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Example: example, Aliases: aliases, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return usageError(cmd, "%s has no command %q%s", cmd.CommandPath(), args[0], hint)
		}}
}

// positional checks the number of arguments against what the command's Use line names: NAME is one
// argument, [NAME] may be left out, NAME... is one or more, [NAME...] any number.
func positional(cmd *cobra.Command, args []string) error {
	least, most := 0, 0
	words := strings.Fields(cmd.Use)[1:]
	for _, word := range words {
		switch {
		case strings.HasSuffix(word, "...]"):
			most = len(args) + 1
		case strings.HasSuffix(word, "..."):
			least, most = least+1, len(args)+1
		case strings.HasPrefix(word, "["):
			most++
		default:
			least, most = least+1, most+1
		}
	}
	switch {
	case len(args) < least:
		return usageError(cmd, "%s needs %s", cmd.CommandPath(), strings.Join(words, " "))
	case len(args) > most && len(words) == 0:
		return usageError(cmd, "%s takes no argument, and there is %q", cmd.CommandPath(), args[0])
	case len(args) > most:
		return usageError(cmd, "%s takes %s, and there is %q too", cmd.CommandPath(), strings.Join(words, " "), args[most])
	}
	return nil
}

// classify makes every complaint about arguments, of whatever command, one of usage.
func classify(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		classify(sub)
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err != nil && !fault.Is(err, fault.Invalid) {
				return usageError(cmd, "%w", err)
			}
			return err
		}
	}
}

// one is a command whose arguments are as its use line says.
func one(use, short, example string, run func(*cobra.Command, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Example: "  " + example, Args: positional, RunE: run}
}

func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{Use: "help [COMMAND]", Short: "Help about a command", Example: "  hayloft help vm create",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err != nil || found == nil || len(rest) > 0 {
				return usageError(root, "there is no command %q", strings.Join(args, " "))
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		}}
}

// created tells the ids of new objects.
func (a *app) created(kind string, ids ...int) error {
	switch a.output {
	case "json", "yaml":
		if len(ids) == 1 {
			return a.print(map[string]int{"id": ids[0]})
		}
		return a.print(map[string][]int{"ids": ids})
	}
	plain := a.quiet || a.output != ""
	if len(ids) > 1 && !plain {
		_, err := fmt.Fprintf(a.stdout, "IDs: %s\n", idsText(ids))
		return err
	}
	for _, id := range ids {
		label := "ID: "
		if plain {
			label = ""
		}
		if _, err := fmt.Fprintf(a.stdout, "%s%d\n", label, id); err != nil {
			return fmt.Errorf("%s %d created: %w", kind, id, err)
		}
	}
	return nil
}
