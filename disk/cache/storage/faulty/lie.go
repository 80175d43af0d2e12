package faulty

import "io"

// Lie is how a repository lies to readers. The zero value tells the truth.
type Lie struct {
	// Each is told by one read in so many, by chance; 0: never, 1: each time.
	WrongByte int // one byte is another
	Short     int // fewer bytes than there are, and io.EOF
	Stale     int // what the image was: see Source.Lie
	// Less is by how many bytes the image seems shorter than it is.
	Less int64
}

// Lie has the source lie from now on. stale, which may be nil, is where stale bytes come from.
func (s *Source) Lie(l Lie, stale io.ReaderAt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lie, s.stale = l, stale
}

func (l Lie) size(size int64) int64 { return max(0, size-l.Less) }

// lied makes of a true answer what the reader is told.
func (s *Source) lied(p []byte, n int, offset int64, err error) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lie == (Lie{}) || n == 0 {
		return n, err
	}
	s.told++
	tell := func(oneIn int, kind uint64) bool {
		return oneIn > 0 && s.link.chance(uint64(offset), kind, s.told)%uint64(oneIn) == 0
	}
	if s.stale != nil && tell(s.lie.Stale, 1) {
		if _, err := s.stale.ReadAt(p[:n], offset); err != nil && err != io.EOF {
			return 0, err
		}
	}
	h := s.link.chance(uint64(offset), 2, s.told)
	if tell(s.lie.WrongByte, 3) {
		p[h%uint64(n)] ^= byte(1 + h>>32%255)
	}
	if tell(s.lie.Short, 4) {
		return int(h % uint64(n)), io.EOF
	}
	size := s.server.imageSize() - s.lie.Less
	if offset+int64(n) > size {
		return int(max(0, size-offset)), io.EOF
	}
	return n, err
}

func (d *Disk) imageSize() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.live[imageFile].size
}
