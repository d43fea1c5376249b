package credential

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
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

// Format writes the name of the type, for every verb, as a Broker's does. The
// inventory is what [Ledger.Leases] returns.
func (l *Ledger) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "credential.Ledger") }

// Leases returns the inventory: what is pending, live, being revoked, or
// unrevocable and not yet dead, oldest first.
func (l *Ledger) Leases() []Lease {
	all := l.find(func(*lease) bool { return true })
	l.sweep(all)
	out := make([]Lease, 0, len(all))
	for _, x := range all {
		if f, ok := l.snapshot(x); ok {
			out = append(out, f)
		}
	}
	return out
}

// Revoke takes back every credential that match accepts; nil means all. None is
// used again, and each is revoked at its issuer. A credential that is just being issued
// counts, with its ID and Expires still zero. Revoke waits for one attempt at
// each or for ctx, and returns nil when all were revoked, otherwise an
// [*UnrevokedError]; those left are tried again in the background until they
// expire. Tasks may be issued new ones at once; see [Ledger.Block].
func (l *Ledger) Revoke(ctx context.Context, match func(Lease) bool) error {
	if ctx == nil {
		ctx = context.Background()
	}
	hit := l.matching(match)
	for _, x := range hit {
		l.revoke(ctx, x)
	}
	// A pending lease has no token yet. It is doomed: its flight has the token
	// revoked when it comes. Revoke neither waits for that nor names it.
	hit = slices.DeleteFunc(hit, l.pending)
	awaitTried(ctx, hit)
	return unrevoked(hit, false)
}

// awaitTried waits until the revocation of each was tried, or for ctx.
func awaitTried(ctx context.Context, all []*lease) {
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

// open enters a lease whose token is about to be asked for.
func (l *Ledger) open(ctx context.Context, x *lease) *Error {
	x.facts.Issued = clock.Now().Time()
	if err := l.claim(ctx, x.task); err != nil {
		return err
	}
	x.facts.State = LeasePending
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
		l.remove(x)
		return &Error{Reason: ErrBlocked}
	}
	return nil
}

// claim makes room for one more lease of t. Where t holds as many as it may, it
// first waits, within ctx, for revocations that are under way: a task that
// replaces credentials faster than its issuer revokes them is slowed down, and
// not refused.
func (l *Ledger) claim(ctx context.Context, t *Task) *Error {
	err := t.claim(l)
	if err == nil || err.Reason != ErrLimit {
		return err
	}
	l.sweep(l.of(t.root)) // and no other task's: that would hold others up
	for {
		changed := t.nextChange() // first: what changes from here on is not missed
		err = t.claim(l)
		if err == nil || err.Reason != ErrLimit || !l.isRevoking(t) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return t.claim(l) // if the task has ended, that is the error
		}
	}
}

// isRevoking reports whether t has a lease whose revocation is under way and was
// not tried yet.
func (l *Ledger) isRevoking(t *Task) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for x := range l.leases[t.root] {
		if x.task != t || x.facts.State != LeaseRevoking {
			continue
		}
		select {
		case <-x.tried:
		default:
			return true
		}
	}
	return false
}

// print returns the fingerprint of a token.
func (l *Ledger) print(t secret.Text) (f fingerprint) {
	h := hmac.New(sha256.New, l.secret)
	h.Write([]byte(secret.Reveal(t)))
	h.Sum(f[:0])
	return f
}

// knows reports whether t is the token of a lease. It is called with mu held.
func (l *Ledger) knows(t secret.Text) bool { return l.tokens[l.print(t)] != nil }

// settle enters what came of asking the issuer: a lease with a token goes live,
// unless it was refused, or was revoked or outlived by its task while the
// issuer was asked; then the token is revoked. One decision under one lock: two
// answers with the same token must not both be believed.
func (l *Ledger) settle(ctx context.Context, x *lease, refused *Error) *Error {
	if x.token.IsZero() {
		l.remove(x)
		l.mu.Lock()
		x.extra = slices.DeleteFunc(x.extra, l.knows)
		l.mu.Unlock()
		x.owner.addOrphan(ctx, x)
		return refused
	}
	ended := x.task.isClosed()
	l.mu.Lock()
	x.extra = slices.DeleteFunc(x.extra, l.knows) // of another lease, and not ours to revoke
	old := l.tokens[x.print]
	if old != nil && !old.sameAs(x) {
		l.mu.Unlock()
		// To revoke it may take old's token with it (RFC 7009 section 2.1).
		x.extra = slices.DeleteFunc(x.extra, func(t secret.Text) bool { return holds(old.extra, t) })
		l.remove(x)
		x.owner.addOrphan(ctx, x)
		return x.key.orRefused(refused, "foreign_token", "the answer is a token that is in use elsewhere")
	}
	if old != nil { // they go with the token that both have
		x.extra = append(slices.DeleteFunc(x.extra, func(t secret.Text) bool { return holds(old.extra, t) }), old.extra...)
	}
	l.tokens[x.print] = x
	x.facts.ID = l.lastID.Add(1)
	x.facts.Expires, x.facts.Acting = x.expires, x.acting
	if x.bound {
		x.facts.Bound = x.holder.name()
	}
	switch {
	case refused != nil:
	case ended:
		refused = x.key.fail(ErrTaskEnded, "")
	case x.facts.State != LeasePending:
		refused = x.key.takenBack()
	}
	x.dead.Store(refused != nil)
	x.facts.State = LeaseLive
	if refused != nil {
		x.facts.State = LeaseRevoking
	}
	l.mu.Unlock()
	switch {
	case old == nil:
	case refused != nil:
		l.remove(old)
		old.drop(old)
	default:
		x.inherit(old)
		l.unlist(old)
		old.drop(old)
	}
	if refused != nil {
		x.owner.add(ctx, x)
	}
	return refused
}

// sameAs reports whether x, which has the same token, takes old's place: some
// servers give a token that they gave before.
func (old *lease) sameAs(x *lease) bool {
	return old.key == x.key && old.holder == x.holder && old.owner == x.owner && !old.once && !old.dead.Load()
}

// revoke takes a lease out of use and has it revoked. It does not wait.
func (l *Ledger) revoke(ctx context.Context, x *lease) {
	l.mu.Lock()
	x.dead.Store(true) // under the lock, as settle's
	before := x.facts.State
	switch before {
	case LeasePending:
		x.facts.State = leaseDoomed
	case LeaseLive:
		x.facts.State = LeaseRevoking
		if x.expires.IsZero() { // of unknown life: that long from now, however old it is
			x.dies = clock.Now().Add(unknownLife)
		}
	}
	l.mu.Unlock()
	switch before {
	case LeasePending:
		x.drop(x)
	case LeaseLive:
		x.drop(x)
		x.owner.add(ctx, x)
	}
}

// unrevocable notes that the issuer cannot take the token back, and returns
// how long it still lives.
func (l *Ledger) unrevocable(x *lease) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x.facts.State == leaseGone {
		return -1 // it has expired meanwhile
	}
	x.facts.State = LeaseUnrevocable
	return max(clock.Now().Until(x.dies), 0) // dies is guarded by mu, too
}

// left returns how long a token still lives.
func (l *Ledger) left(x *lease) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(clock.Now().Until(x.dies), 0)
}

// expired reports whether the token has died by itself, by the issuer's word.
// doubt says that only the wall clock has it so, which may have been set, and
// that its revocation was not tried: one attempt is worth it.
func (l *Ledger) expired(x *lease, now clock.Instant) (dead, doubt bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case x.facts.ID == 0:
		return false, false // its token has not come: what is below is being written
	case x.facts.State == LeaseLive && x.expires.IsZero():
		return false, false // its end is not known, and a call carries it
	}
	select {
	case <-x.tried:
	default:
		doubt = now.Mono() < x.dies.Mono()
	}
	return now.Reached(x.dies), doubt
}

// remove takes a lease out of the ledger, because its token is dead or never
// came. It reports whether this call did so.
func (l *Ledger) remove(x *lease) bool {
	l.mu.Lock()
	x.dead.Store(true)
	l.mu.Unlock()
	return l.unlist(x)
}

// unlist is remove for a lease whose token lives on in another lease.
func (l *Ledger) unlist(x *lease) bool {
	l.mu.Lock()
	if x.facts.State == leaseGone || x.facts.State == "" { // "": never claimed
		l.mu.Unlock()
		return false
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
	x.task.unclaim()
	x.closeTried()
	return true
}

// sweep closes those leases whose tokens have died by themselves.
func (l *Ledger) sweep(all []*lease) {
	now := clock.Now()
	for _, x := range all {
		switch dead, doubt := l.expired(x, now); {
		case dead && doubt:
			l.revoke(context.Background(), x)
		case dead:
			l.expire(context.Background(), x)
		}
	}
}

// expire closes a lease whose token has died by itself, once.
func (l *Ledger) expire(ctx context.Context, x *lease) {
	f, ok := l.snapshot(x)
	if !ok || !l.remove(x) {
		return
	}
	x.drop(x)
	x.owner.record(ctx, x, Event{Kind: EventExpired, Lease: f})
	x.owner.addOrphan(ctx, x)
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
	if matched = true; match == nil {
		return
	}
	quietly(func() { matched = match(f) })
	return matched
}

// snapshot returns what the inventory shows of a lease; ok is false when it is
// no longer there.
func (l *Ledger) snapshot(x *lease) (f Lease, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f = x.facts
	switch f.State {
	case leaseGone:
		f.State = ""
		return f, false
	case leaseDoomed:
		f.State = LeasePending
	}
	return f, true
}

// unrevoked returns an error that names those of all whose token may be alive,
// with those that are still being issued where pending says so.
func unrevoked(all []*lease, pending bool) error {
	var left []Lease
	for _, x := range all {
		if f, ok := x.ledger.snapshot(x); ok && (pending || f.State != LeasePending) {
			left = append(left, f)
		}
	}
	if left == nil {
		return nil
	}
	return &UnrevokedError{Leases: left}
}
