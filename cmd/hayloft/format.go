package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// format is how results are written: "" is for people.
type format string

var formats = []string{"json", "yaml", "name", "id"}

// String, Set and Type make format a flag.
func (f *format) String() string { return string(*f) }

// Set refuses what is not a format.
func (f *format) Set(text string) error {
	if !slices.Contains(formats, text) {
		return fmt.Errorf("%q is none of %s", text, strings.Join(formats, ", "))
	}
	*f = format(text)
	return nil
}

// Type is shown in help.
func (f *format) Type() string { return "FORMAT" }

// structured says that output goes to a program.
func (a *app) structured() bool { return a.output == "json" || a.output == "yaml" }

// print writes a value as JSON or YAML.
func (a *app) print(value any) error {
	if a.output == "yaml" {
		return writeYAML(a.stdout, value)
	}
	encoder := json.NewEncoder(a.stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// writeYAML writes what JSON would, with its names and in its order, as YAML.
func writeYAML(w io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return err
	}
	unstyle(&document)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return err
	}
	if err := encoder.Close(); err != nil {
		return err
	}
	_, err = w.Write(out.Bytes())
	return err
}

// unstyle takes the quotes and braces of JSON from a document. Empty ones stay as they are.
func unstyle(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, child := range n.Content {
		unstyle(child)
	}
}
