package s3

import (
	"context"
	"errors"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// CreateFrom implements repository.Cloner: always Copied, by the server, in Commit. A parent that is replaced or deleted
// until then makes Commit fail with fault.Busy.
func (r *Repository) CreateFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	if err := errors.Join(repository.CheckName(from), repository.CheckName(name)); err != nil {
		return nil, "", fault.As(fault.Invalid, err)
	}
	parent, err := r.open(ctx, from)
	if err != nil {
		return nil, "", err
	}
	w, err := r.create(ctx, name, parent)
	if err != nil {
		return nil, "", r.object(name, err)
	}
	return w, repository.Copied, nil
}

// Flatten implements repository.Cloner: clones depend on nobody.
func (r *Repository) Flatten(ctx context.Context, name string) error {
	_, err := r.Stat(ctx, name)
	return err
}

// Parent implements repository.Cloner: clones depend on nobody.
func (r *Repository) Parent(ctx context.Context, name string) (string, error) {
	_, err := r.Stat(ctx, name)
	return "", err
}
