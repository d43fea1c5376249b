package credential

import (
	"context"
	"time"
)

const (
	rejectPause   = 10 * time.Second // without issuing, after two 401 in a row
	maxRejections = 1024             // keys remembered
)

// rejection counts the credentials of one key that the endpoint answered with
// 401, since the last one that it took.
type rejection struct {
	strikes int
	until   instant // no issuing before; zero: issuing goes on
}

// reject drops a credential that was answered with 401, that very one and no
// other: meanwhile another call may have a fresh one. The second in a row stops
// issuing for the key for a moment, lest an endpoint that always says no turns
// every call into an exchange.
func (b *Broker[S]) reject(l *lease) {
	b.ledger.revoke(context.Background(), l)
	r, _ := b.rejects.Get(l.key)
	if r.strikes++; r.strikes >= 2 {
		r.until = readClock().add(rejectPause)
	}
	b.rejects.Add(l.key, r)
}

// accept forgets what the endpoint rejected before.
func (b *Broker[S]) accept(l *lease) {
	if b.rejects.Len() > 0 {
		b.rejects.Remove(l.key)
	}
}

// rejected reports whether issuing for a key is stopped.
func (b *Broker[S]) rejected(k key) bool {
	r, ok := b.rejects.Peek(k)
	return ok && r.until != instant{} && !readClock().reached(r.until)
}
