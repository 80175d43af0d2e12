package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/server/api/client"
)

// completionPatience is how long the shell waits for names, at most.
const completionPatience = 2 * time.Second

// placeholder stands for a kind in a use line.
func placeholder(kind string) string { return strings.ToUpper(kind) }

type completion = func(cmd *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective)

// named is as much as completion needs of any object.
type named struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

// complete offers the ids (machines, whose names repeat) or names of a kind for the first argument, or for
// all of them.
func (a *app) complete(kind string, all bool) completion {
	return func(cmd *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		if len(args) > 0 && !all {
			return nil, none
		}
		c, err := a.connect()
		if err != nil {
			return nil, none
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		objects, err := client.List[named](ctx, c, kind)
		if err != nil {
			return nil, none
		}
		var words []string
		for _, o := range objects {
			id, name := strconv.Itoa(o.ID), printable(o.Name)
			if strings.HasPrefix(name, text) && text != "" || kind != "vm" {
				words = append(words, name+"\t"+kind+" "+id)
			} else {
				words = append(words, id+"\t"+name)
			}
		}
		return words, none
	}
}

// completeFlag offers the names of a kind for a flag.
func (a *app) completeFlag(cmd *cobra.Command, flag, kind string) {
	must(cmd.RegisterFlagCompletionFunc(flag, a.complete(kind, true)))
}

// completeWords offers fixed words for a flag.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)))
}

// must is for what is wrong only when the program itself is, such as a flag that does not exist.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func newCompletionCommand(a *app) *cobra.Command {
	cmd := one("completion SHELL", "Write the completion script of a shell: bash, zsh or fish",
		"source <(hayloft completion bash)\n  hayloft completion zsh > \"${fpath[1]}/_hayloft\"\n  hayloft completion fish | source",
		func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			}
			return usageError(cmd, "shell %q is none of bash, zsh, fish", args[0])
		})
	cmd.ValidArgs = []string{"bash", "zsh", "fish"}
	return cmd
}
