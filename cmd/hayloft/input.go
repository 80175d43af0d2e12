package main

import (
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/cloud/template"
)

// largestInput bounds template text, bytes; the server takes no more either.
const largestInput = 1 << 20

// templateFile reads a template from a file, or from standard input for "-".
func (a *app) templateFile(path string) (template.Template, error) {
	if path == "" {
		return template.Template{}, nil
	}
	var in io.Reader = a.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return template.Template{}, err
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, largestInput+1))
	if err != nil {
		return template.Template{}, err
	}
	if len(text) > largestInput {
		return template.Template{}, fault.Errorf(fault.Invalid, "template %s: more than %d bytes", path, largestInput)
	}
	t, err := template.Parse(string(text))
	if err != nil {
		return t, fault.Errorf(fault.ClassOf(err), "template %s: %w", path, err)
	}
	return t, nil
}

// input is a template from a file and from flags; flags win.
type input struct {
	app  *app
	file string
	set  []string
	name string
}

// register adds the flags that every creation has.
func (in *input) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&in.file, "file", "f", "", "template to begin with, - for standard input")
	flags.StringArrayVar(&in.set, "set", nil, "further attributes, as in a template: 'NAME = value' or 'NAME = [ KEY = value ]' (repeatable)")
	flags.StringVar(&in.name, "name", "", "NAME")
	must(cmd.MarkFlagFilename("file"))
}

// begin reads the file; finish adds --name and --set, after what the other flags say.
func (in *input) begin() (template.Template, error) { return in.app.templateFile(in.file) }

func (in *input) finish(t *template.Template) error {
	if in.name != "" {
		t.Set("NAME", in.name)
	}
	return merge(t, in.set)
}

// merge puts assignments over a template; several with one name stay together.
func merge(t *template.Template, assignments []string) error {
	var all template.Template
	for _, text := range assignments {
		parsed, err := template.Parse(text)
		if err != nil {
			return fault.Errorf(fault.Invalid, "--set %q: %w", text, err)
		}
		if len(parsed.Attributes) == 0 {
			return fault.Errorf(fault.Invalid, "--set %q: want NAME = value", text)
		}
		all.Attributes = append(all.Attributes, parsed.Attributes...)
	}
	t.Merge(all)
	return nil
}

// reference is a pair that names an object by id or name: IMAGE_ID = 3 or IMAGE = "tiny".
func reference(key, ref string) template.Pair {
	if _, err := strconv.Atoi(ref); err == nil {
		return template.Pair{Name: key + "_ID", Value: ref}
	}
	return template.Pair{Name: key, Value: ref}
}

// setText sets single attributes from flags; an empty one changes nothing.
func setText(t *template.Template, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if value := strings.TrimSpace(pairs[i+1]); value != "" {
			t.Set(pairs[i], value)
		}
	}
}
