package lifecycle

import "sync"

// Progress is how far work is that this server does, by object; it is not stored.
type Progress struct {
	mu    sync.Mutex
	bytes map[int][2]int64
}

// Image returns bytes done and in all (0: unknown) of an image's import.
func (p *Progress) Image(id int) (done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.bytes[id]
	return b[0], b[1]
}

func (p *Progress) setImage(id int, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes == nil {
		p.bytes = map[int][2]int64{}
	}
	p.bytes[id] = [2]int64{done, total}
}

func (p *Progress) dropImage(id int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.bytes, id)
}
