package attempt

import "sync"

// Hand passes a value from the goroutine that makes it to a caller who may have left before it is there.
type Hand[T any] struct {
	Discard func(T) // takes what nobody waits for any more

	mu    sync.Mutex
	value T
	have  bool
	left  bool
}

// Give passes value on, unless err says that there is none.
func (h *Hand[T]) Give(value T, err error) error {
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left {
		h.Discard(value)
		return nil
	}
	h.value, h.have = value, true
	return nil
}

// Take gives the value that has come. With an err, why the caller does not wait for it, it is discarded, now or when it comes.
func (h *Hand[T]) Take(err error) (T, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		return h.value, nil
	}
	if h.left = true; h.have {
		h.Discard(h.value)
	}
	return *new(T), err
}
