package credential

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
)

// Ledger is the inventory of what was issued and is not yet dead. Brokers of
// any kind may share one, see BrokerOptions.Ledger; then one call shows or
// takes back everything a process holds.
//
// The zero Ledger is empty and ready to use. A Ledger must not be copied and is
// safe for concurrent use. No func it is given is called under a lock.
type Ledger struct {
	mu     sync.Mutex // guards the fields below and lease.facts; no I/O under it
	leases map[*Task]map[*lease]struct{}
	tokens map[fingerprint]*lease
	secret []byte // of fingerprints
	blocks []*block
	lastID atomic.Uint64
}

type block struct{ match func(Lease) bool }

// fingerprint stands for a token where two are compared. It is keyed by a
// secret of the ledger, so that it says nothing about the token elsewhere.
type fingerprint [sha256.Size]byte

// Leases returns the inventory: what is pending, live, being revoked, or
// unrevocable and not yet dead, oldest first.
func (l *Ledger) Leases() []Lease {
	now := readClock()
	all := l.find(func(*lease) bool { return true })
	out := make([]Lease, 0, len(all))
	for _, x := range all {
		if f, ok := l.snapshot(x); ok && !l.expired(x, now) {
			out = append(out, f)
		}
	}
	return out
}

// Revoke takes back every credential that match accepts: none is used again,
// and each is revoked at its issuer. A credential that is just being issued
// counts, with its ID and Expires still zero. Revoke waits for one attempt at
// each or for ctx, and returns nil when all were revoked, otherwise an
// [*UnrevokedError]; those left are tried again in the background until they
// expire. Tasks may be issued new ones at once; see [Ledger.Block].
func (l *Ledger) Revoke(ctx context.Context, match func(Lease) bool) error {
	hit := l.matching(match)
	for _, x := range hit {
		l.revoke(ctx, x)
	}
	// One that is pending has no token yet. It is doomed: its flight has the
	// token revoked when it comes, and nobody waits for that.
	await(ctx, slices.DeleteFunc(slices.Clone(hit), l.pending))
	return unrevoked(hit)
}

// await waits until the revocation of each was tried, or for ctx.
func await(ctx context.Context, all []*lease) {
	for _, x := range all {
		select {
		case <-x.tried:
		case <-ctx.Done():
			return
		}
	}
}

// pending reports whether the token of a lease has not come.
func (l *Ledger) pending(x *lease) bool {
	f, ok := l.snapshot(x)
	return ok && f.State == LeasePending
}

// Block is the kill switch: it refuses to issue what match accepts, with
// [ErrBlocked], and takes back what was issued, as [Ledger.Revoke] does. It is
// in force before the first credential is taken back and until unblock is
// called, which is idempotent and never nil. match is called with the Lease
// that would come to be, its ID and Expires zero.
func (l *Ledger) Block(ctx context.Context, match func(Lease) bool) (unblock func(), err error) {
	b := &block{match}
	l.mu.Lock()
	l.blocks = append(slices.Clip(l.blocks), b) // a copy: readers hold the old one
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.blocks = slices.DeleteFunc(slices.Clone(l.blocks), func(x *block) bool { return x == b })
	}, l.Revoke(ctx, match)
}

// open enters a lease that is about to be asked for.
func (l *Ledger) open(x *lease) *Error {
	x.facts.State, x.facts.Issued = LeasePending, readClock().time()
	if err := x.task.claim(l); err != nil {
		l.sweep(x.task)
		if err = x.task.claim(l); err != nil {
			return err
		}
	}
	// First enter, then ask the blocks: a Block that comes in between finds the
	// lease in the ledger and dooms it.
	l.mu.Lock()
	if l.leases == nil {
		l.leases = map[*Task]map[*lease]struct{}{}
		l.tokens = map[fingerprint]*lease{}
		l.secret = make([]byte, sha256.Size)
		_, _ = rand.Read(l.secret) // never fails
	}
	root := x.task.root
	if l.leases[root] == nil {
		l.leases[root] = map[*lease]struct{}{}
	}
	l.leases[root][x] = struct{}{}
	blocks := l.blocks
	l.mu.Unlock()
	f, _ := l.snapshot(x)
	if slices.ContainsFunc(blocks, func(b *block) bool { return quietMatch(b.match, f) }) {
		l.close(x)
		return &Error{Reason: ErrBlocked}
	}
	return nil
}

// print returns the fingerprint of a token.
func (l *Ledger) print(t secret.Text) (f fingerprint) {
	h := hmac.New(sha256.New, l.secret)
	h.Write([]byte(secret.Reveal(t)))
	h.Sum(f[:0])
	return f
}

// holder returns the lease that has the token, nil when none has.
func (l *Ledger) holder(f fingerprint) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tokens[f]
}

// activate makes a lease live, with the token that has come for it and dies at
// dies. It fails when the lease was revoked or its task ended while the issuer
// was asked.
func (l *Ledger) activate(x *lease, dies instant) bool {
	closed := x.task.isClosed()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enter(x, dies)
	if x.facts.State != LeasePending || closed {
		return false
	}
	x.facts.State = LeaseLive
	return true
}

// enter notes what is known of a token. It is called with mu held.
func (l *Ledger) enter(x *lease, dies instant) {
	x.facts.ID = l.lastID.Add(1)
	x.facts.Expires, x.facts.Acting, x.dies = x.expires, x.acting, dies
	l.tokens[x.print] = x
}

// revoke takes a lease out of use and has it revoked. It does not wait.
func (l *Ledger) revoke(ctx context.Context, x *lease) {
	x.dead.Store(true)
	l.mu.Lock()
	before := x.facts.State
	switch before {
	case LeasePending:
		x.facts.State = leaseDoomed
	case LeaseLive:
		x.facts.State = LeaseRevoking
	}
	l.mu.Unlock()
	if before != LeaseLive {
		return
	}
	x.drop(x)
	x.owner.add(ctx, x)
}

// recall has a token revoked that came too late or was refused.
func (l *Ledger) recall(ctx context.Context, x *lease, dies instant) {
	x.dead.Store(true)
	l.mu.Lock()
	if x.facts.ID == 0 {
		l.enter(x, dies)
	}
	x.facts.State = LeaseRevoking
	l.mu.Unlock()
	x.owner.add(ctx, x)
}

// unrevocable notes that the issuer cannot take the token back, and returns
// how long it still lives.
func (l *Ledger) unrevocable(x *lease) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.facts.State = LeaseUnrevocable
	return readClock().until(x.dies)
}

// expired reports whether the token has died by itself, by the issuer's word.
func (l *Ledger) expired(x *lease, now instant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return x.dies != instant{} && now.reached(x.dies)
}

// close takes a lease out of the ledger: its token is dead, or never came.
func (l *Ledger) close(x *lease) {
	x.dead.Store(true)
	l.mu.Lock()
	if x.facts.State == leaseGone {
		l.mu.Unlock()
		return
	}
	x.facts.State = leaseGone
	root := x.task.root
	delete(l.leases[root], x)
	if len(l.leases[root]) == 0 {
		delete(l.leases, root)
	}
	if l.tokens[x.print] == x {
		delete(l.tokens, x.print)
	}
	l.mu.Unlock()
	x.task.release()
	x.settle()
}

// sweep closes the leases of a task whose tokens have died by themselves.
func (l *Ledger) sweep(t *Task) {
	now := readClock()
	for _, x := range l.of(t.root) {
		if x.task == t && l.expired(x, now) {
			l.expire(context.Background(), x)
		}
	}
}

// expire closes a lease whose token has died by itself, once.
func (l *Ledger) expire(ctx context.Context, x *lease) {
	f, ok := l.snapshot(x)
	if !ok {
		return
	}
	l.close(x)
	x.drop(x)
	x.events.record(ctx, Event{Kind: EventExpired, Lease: f})
}

// of returns the leases of a task and its steps.
func (l *Ledger) of(root *Task) []*lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*lease, 0, len(l.leases[root]))
	for x := range l.leases[root] {
		out = append(out, x)
	}
	return out
}

// find returns the leases that keep accepts, oldest first. keep is our own.
func (l *Ledger) find(keep func(*lease) bool) []*lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*lease
	for _, family := range l.leases {
		for x := range family {
			if keep(x) {
				out = append(out, x)
			}
		}
	}
	slices.SortFunc(out, func(a, b *lease) int { return a.facts.Issued.Compare(b.facts.Issued) })
	return out
}

// matching returns the leases that a user's match accepts.
func (l *Ledger) matching(match func(Lease) bool) []*lease {
	all := l.find(func(*lease) bool { return true })
	return slices.DeleteFunc(all, func(x *lease) bool {
		f, ok := l.snapshot(x)
		return !ok || !quietMatch(match, f)
	})
}

// quietMatch calls a user's match; a panic matches, for to revoke too much is
// the safe side.
func quietMatch(match func(Lease) bool, f Lease) (matched bool) {
	matched = true
	quietly(func() { matched = match(f) })
	return matched
}

// snapshot returns what the inventory shows of a lease; ok is false when it is
// no longer there.
func (l *Ledger) snapshot(x *lease) (f Lease, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f = x.facts
	ok = f.State != leaseGone
	if f.State == leaseDoomed {
		f.State = LeasePending
	}
	return f, ok
}

// unrevoked returns an error that names those of all whose token may be alive.
func unrevoked(all []*lease) error {
	var left []Lease
	for _, x := range all {
		if f, ok := x.ledger.snapshot(x); ok && f.State != LeasePending {
			left = append(left, f)
		}
	}
	if left == nil {
		return nil
	}
	return &UnrevokedError{Leases: left}
}
