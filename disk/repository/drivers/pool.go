package drivers

import (
	"encoding/json"
	"errors"
	"io"
	"sync"

	"hayloft/disk"
	"hayloft/disk/repository"
)

// Pool opens each repository once for all of a process, so that they share its connections. A repository of a Pool is not
// closed by who uses it.
type Pool struct {
	mu   sync.Mutex
	open map[string]repository.Repository // by description
}

// Open is the function Open, or gives what was opened before.
func (p *Pool) Open(r disk.Repository) (repository.Repository, error) {
	key, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if repo := p.open[string(key)]; repo != nil {
		return repo, nil
	}
	repo, err := Open(r)
	if err != nil {
		return nil, err
	}
	if p.open == nil {
		p.open = map[string]repository.Repository{}
	}
	p.open[string(key)] = repo
	return repo, nil
}

// Close closes all of them.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, repo := range p.open {
		if closer, ok := repo.(io.Closer); ok {
			errs = append(errs, closer.Close())
		}
	}
	p.open = nil
	return errors.Join(errs...)
}
