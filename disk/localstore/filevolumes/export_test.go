package filevolumes

import "time"

// SetPatience has an open volume waited for as long as that.
func (s *Store) SetPatience(d time.Duration) { s.patience = d }
