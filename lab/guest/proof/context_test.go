package proof

import "context"

// noContext is for cleaning up, when the test's own context has ended.
func noContext() context.Context { return context.Background() }
