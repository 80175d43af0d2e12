package lifecycle

import (
	"context"
	"testing"

	"hayloft/cloud"
	"hayloft/disk/repository"
)

// copier is a repository whose clones make their parent slow.
type copier struct{ repository.Cloner }

func (copier) CreateFrom(context.Context, string, string) (repository.Writer, repository.CloneKind, error) {
	return nil, repository.LVMSnapshot, nil
}

func (copier) CopyFrom(context.Context, string, string) (repository.Writer, repository.CloneKind, error) {
	return nil, repository.Copied, nil
}

func TestPersistentParentsAreCopied(t *testing.T) {
	for persistent, want := range map[bool]repository.CloneKind{true: repository.Copied, false: repository.LVMSnapshot} {
		_, kind, err := cloneFrom(t.Context(), copier{}, cloud.Image{Persistent: persistent, Source: "a"}, "b")
		if err != nil || kind != want {
			t.Errorf("persistent %v: %s, %v", persistent, kind, err)
		}
	}
}
