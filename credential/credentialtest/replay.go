package credentialtest

import (
	"crypto/sha256"
	"sync"
)

// replays remembers the jti of every proof for as long as the proof's iat is
// near enough (RFC 9449 section 11.1). None is forgotten earlier, so a flood of
// others does not make a proof good again.
type replays struct {
	mu    sync.Mutex
	seen  map[[sha256.Size]byte]int64 // the last second in which it could be used
	sweep int                         // at which size the past is removed
}

// first reports whether id was not seen before. It is remembered until the
// second last is over. Times are in Unix seconds.
func (s *replays) first(id string, now, last int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256([]byte(id))
	if end, ok := s.seen[key]; ok && end >= now {
		s.seen[key] = max(end, last)
		return false
	}
	if len(s.seen) >= s.sweep {
		for k, end := range s.seen {
			if end < now {
				delete(s.seen, k)
			}
		}
		s.sweep = max(1024, 2*len(s.seen))
	}
	if s.seen == nil {
		s.seen = map[[sha256.Size]byte]int64{}
	}
	s.seen[key] = last
	return true
}
