package way

import (
	"context"
	"testing"

	"hayloft/disk/repository"
)

// depender is a repository with one object, which depends on parent.
type depender struct {
	repository.Repository
	repository.Cloner
	parent string
}

func (d depender) Parent(context.Context, string) (string, error) { return d.parent, nil }
func (depender) DependentKind() repository.CloneKind              { return repository.LVMSnapshot }

func TestDependence(t *testing.T) {
	for parent, want := range map[string]repository.CloneKind{"": "", "a": repository.LVMSnapshot} {
		if got, err := dependence(t.Context(), depender{parent: parent}, "b"); err != nil || got != string(want) {
			t.Errorf("a child of %q is %q, %v", parent, got, err)
		}
	}
}
