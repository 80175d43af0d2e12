package agent

import (
	"context"

	"hayloft/wire"
)

// goalNone: the server wants nothing, as after "recover --failure": what was under way is left where it
// is, and what is there is reported.
func (p *pass) goalNone(ctx context.Context) error {
	if _, err := p.settle(ctx); err != nil {
		return err
	}
	phase := p.r.phase()
	if phase == wire.Phase_PHASE_PREPARING { // nothing is, any more
		phase = wire.Phase_PHASE_UNSPECIFIED
	}
	p.show(phase)
	return nil
}
