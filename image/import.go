package image

import (
	"context"

	"hayloft/cloud/fault"
)

// Import takes an image in: see ImportOptions. On any error, and when ctx ends, nothing of it is left.
func Import(ctx context.Context, o ImportOptions) (Info, error) {
	return Info{}, fault.Errorf(fault.Unsupported, "import of %s: being built", o.Source)
}

// Create makes an empty (all zero) image.
func Create(ctx context.Context, o CreateOptions) (Info, error) {
	return Info{}, fault.Errorf(fault.Unsupported, "create of %s: being built", o.Name)
}
