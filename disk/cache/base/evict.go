package base

// evictBatch is how many bytes go at once at least, where the capacity is large: each time costs a sync of the map.
const evictBatch = 16 << 20

// evict makes room for n bytes. Order: the chunks count as missing; readers that began before find out by gen or
// hold punching; the map durably does not claim them; then their space is given back. Until all of that is done
// nobody can fetch them again.
func (b *base) evict(n int64) error {
	b.saving.Lock()
	defer b.saving.Unlock()
	if b.kept.Load()+n <= b.capacity { // somebody else made it
		return nil
	}
	flights, victims := b.choose(max(n, min(b.capacity/8, evictBatch)))
	if victims == 0 {
		return errNoRoom
	}
	b.gen.Add(1)
	err := b.unclaim(flights)
	if err != nil { // on the disk they may still be claimed, so their data stays
		for _, f := range flights {
			for i := f.first; i < f.first+f.count; i++ {
				_, length := b.index.Range(i)
				b.stored.set(i)
				b.here.set(i)
				b.bytes.Add(int64(length))
			}
		}
		b.degrade("evict", err)
	} else {
		err = b.punch(flights)
	}
	for _, f := range flights {
		b.land(f)
	}
	if err == nil {
		b.kept.Add(-victims)
		b.evicted.Add(victims)
	}
	return err
}

// choose takes the least used chunks, n bytes of them if there are, as flights out, one for each run.
func (b *base) choose(n int64) (flights []*flight, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	step := 1
	for left := 2 * b.chunks; left > 0 && bytes < n; left -= step {
		i := b.hand
		if step = 1; i&63 == 0 && b.stored[i>>6].Load() == 0 {
			step = min(64, b.chunks-i)
		}
		b.hand = (b.hand + step) % b.chunks
		if !b.stored.has(i) || b.flights[i] != nil || b.used.clear(i) || !b.here.clear(i) {
			continue
		}
		b.stored.clear(i)
		_, length := b.index.Range(i)
		b.bytes.Add(-int64(length))
		bytes += int64(length)
		if k := len(flights) - 1; k >= 0 && flights[k].first+flights[k].count == i {
			flights[k].count++
		} else {
			flights = append(flights, &flight{first: i, count: 1, twin: -1, out: true, done: make(chan struct{})})
		}
		b.flights[i] = flights[len(flights)-1]
	}
	return flights, bytes
}

func (b *base) unclaim(flights []*flight) error {
	for _, f := range flights {
		for i := f.first; i < f.first+f.count; i++ {
			if b.presence.has(i) {
				b.presence.clear(i)
			}
		}
	}
	return b.presence.write()
}

func (b *base) punch(flights []*flight) error {
	b.punching.Lock()
	defer b.punching.Unlock()
	for _, f := range flights {
		from, _ := b.index.Range(f.first)
		last, length := b.index.Range(f.first + f.count - 1)
		if err := b.data.Punch(from, last+int64(length)-from); err != nil {
			b.degrade("punch", err)
			return err
		}
	}
	return nil
}

// punchStray gives back the space of chunks that nobody claims: of an eviction or a fetch that a crash interrupted.
func (b *base) punchStray() error {
	for i := 0; i < b.chunks; {
		from := i
		for i < b.chunks && (b.index.IsZero(i) || !b.here.has(i)) {
			i++
		}
		if i > from {
			start, _ := b.index.Range(from)
			last, length := b.index.Range(i - 1)
			if err := b.data.Punch(start, last+int64(length)-start); err != nil {
				return err
			}
		}
		i++
	}
	return nil
}
