package credential

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
)

// Lease is the record of one credential, as the inventory and events show it.
// It holds no secret.
type Lease struct {
	// ID tells the lease from all others of its ledger. Zero means that there is
	// no token yet.
	ID uint64
	// Task is the id of the outermost task; Step that of the innermost step,
	// equal to Task where there is none.
	Task, Step string
	// Tenant, Purpose and Subject (its ID) are those of the task.
	Tenant, Purpose, Subject string
	// Workload is the SPIFFE ID of the running program, "" when not known.
	Workload string
	// Scope is what the credential reaches.
	Scope scope.Any
	// State says where in its life the credential is.
	State LeaseState
	// Issued is when it was asked for.
	Issued time.Time
	// Expires is when it dies by itself, by the issuer's word; zero when that is
	// not known.
	Expires time.Time
	// Acting says whether the token names the workload as the subject's actor.
	Acting Acting
	// Bound says which key or certificate the token is bound to; zero for a bearer
	// token.
	Bound Confirmation
}

// LeaseState is where in its life a lease is.
type LeaseState string

// The states of a lease. One that is revoked or has expired leaves the ledger.
const (
	// LeasePending: the issuer was asked and has not answered.
	LeasePending LeaseState = "pending"
	// LeaseLive: the credential is in use.
	LeaseLive LeaseState = "live"
	// LeaseRevoking: the credential is not used any more; its revocation is
	// under way.
	LeaseRevoking LeaseState = "revoking"
	// LeaseUnrevocable: the credential is not used any more, but its issuer
	// cannot take it back. It lives until Expires.
	LeaseUnrevocable LeaseState = "unrevocable"

	leaseDoomed LeaseState = "doomed" // pending, and to be revoked when its token comes
	leaseGone   LeaseState = "gone"   // not in the ledger
)

// Acting says how a token that was issued for a subject names the workload.
type Acting string

const (
	// ActingUnknown: there is no subject, or the token is opaque.
	ActingUnknown Acting = ""
	// ActingDelegation: the token has an "act" claim; its readers see subject and
	// actor (RFC 8693 section 1.1, delegation).
	ActingDelegation Acting = "delegation"
	// ActingImpersonation: the token can be read and has no "act" claim; the workload
	// cannot be told from the subject (RFC 8693 section 1.1, impersonation).
	ActingImpersonation Acting = "impersonation"
)

// lease is one token and its life. Fields that are not marked otherwise are
// written before the token is in the ledger, and not after.
//
// The states of a lease, and who moves it from one to the next:
//
//	from         to           by                  when
//	-            pending      Ledger.open         the issuer is about to be asked
//	pending      live         Ledger.settle       the token came and is what was asked for
//	pending      revoking     Ledger.settle       the token came and was refused, or the task has ended
//	pending      doomed       Ledger.revoke       End, Revoke, Block or Close before the token came
//	pending      gone         Ledger.remove       no token came, or one that is not ours to revoke
//	doomed       revoking     Ledger.settle       the token came
//	doomed       gone         Ledger.remove       no token came, or one that is not ours to revoke
//	live         revoking     Ledger.revoke       End, Revoke, Block, Close, a 401, or retired and unused
//	live         gone         Ledger.unlist       its heir takes its place
//	live         gone         Ledger.remove       a refused lease with the same token is revoked in its place
//	live         gone         Ledger.expire       the token died by itself
//	revoking     gone         Ledger.remove       the issuer revoked the token
//	revoking     gone         Ledger.expire       the token died by itself
//	revoking     unrevocable  Ledger.unrevocable  the issuer cannot revoke it, or the broker is closed
//	unrevocable  gone         Ledger.expire       the token died by itself
//
// Four marks stand beside the state. None is ever taken back.
//
//	mark         set by                         means
//	dead         Ledger.settle, Ledger.revoke,  no new use: the token is being revoked, or is gone
//	             Ledger.remove, core.reject
//	retiredBit   lease.retire; lease.acquire    no new use: superseded, evicted, or good for one call;
//	             if good for one call           it is revoked when its last call is over
//	exportedBit  lease.markExported             code outside the library holds the token: its calls are
//	                                            not counted, and it lives until its task ends
//	heir         lease.inherit                  a newer lease has the same token, and the heir has it
//	                                            revoked in place of this lease
//
// What every call reads lies together and apart from the rest. A process holds
// thousands of leases, and a call should not fetch memory that it does not read:
// in one piece, a hit at 10,000 keys took a tenth longer.
type lease struct {
	cache   *cache                // of the broker that asked for it
	key     key                   // what it is cached by
	heir    atomic.Pointer[lease] // has the same token and goes on in place of this one
	until   clock.Instant         // no use from here on
	fresh   atomic.Int64          // on the monotonic clock: time to refresh; 0 is never
	dead    atomic.Bool           // no new use
	renewal atomic.Bool           // one refresh at a time
	once    bool                  // good for one call only, and never in the cache
	bound   bool                  // to holder, which every use must prove
	uses    atomic.Uint64         // calls that carry it, retiredBit and exportedBit
	touched atomic.Int64          // on the monotonic clock: when a use was last reported to the cache
	header  secret.Text           // what goes into the Authorization header
	token   secret.Text
	task    *Task
	holder  holder // what the token was to be bound to
	*record
}

// record is the part of a lease that is read when it is made, reported and
// revoked.
type record struct {
	facts  Lease // ID, State, Expires, Acting and Bound are guarded by ledger.mu
	ledger *Ledger
	owner  *revoker
	events *recorder
	drop   func(*lease) // takes it out of the broker's cache and flights

	extra   []secret.Text // refresh tokens, which were not asked for
	expires time.Time     // as facts.Expires
	acting  Acting        // as facts.Acting
	print   fingerprint
	dies    clock.Instant // when the token dies by itself; guarded by ledger.mu

	orphaned atomic.Bool // the refresh token is being revoked by itself

	tried      chan struct{} // closed when its revocation was tried, or is not needed
	closeTried func()        // closes tried, once
}

const (
	retiredBit  = 1 << 63 // to be revoked when its last call is over
	exportedBit = 1 << 62 // code outside the library holds the token
)

// usable reports whether a new call may carry the token at now.
func (l *lease) usable(now clock.Instant) bool {
	return !l.isDead() && !now.Reached(l.until)
}

func (l *lease) isDead() bool {
	h := l.heir.Load()
	return l.dead.Load() || h != nil && h.isDead()
}

// proves reports whether each request with the token carries a proof.
func (l *lease) proves() bool { return l.bound && l.holder.key != nil }

// inherit makes l go on in place of old, which has the same token. While calls
// carry the token as old's, it is not revoked as l's. If old was exported, so is
// l.
func (l *lease) inherit(old *lease) {
	l.uses.Add(1)
	old.heir.Store(l)
	if old.uses.Load()&exportedBit != 0 {
		l.markExported()
	}
	old.retire()
}

// dispose is what happens to a retired lease that no call carries.
func (l *lease) dispose() {
	if h := l.heir.Load(); h != nil {
		h.release()
		return
	}
	l.ledger.revoke(context.Background(), l)
}

// acquire counts one more call that carries the token. It fails when the token
// has been retired. Calls that carry an exported token are not counted: nothing
// waits for the last of them, and they need not contend for the counter.
func (l *lease) acquire() bool {
	for {
		n := l.uses.Load()
		switch {
		case n&retiredBit != 0 || l.isDead():
			return false
		case n&exportedBit != 0 && !l.once:
			return true
		}
		next := n + 1
		if l.once {
			next |= retiredBit
		}
		if l.uses.CompareAndSwap(n, next) {
			return true
		}
	}
}

// release counts a call that is over. The last call of a retired token has it
// revoked.
func (l *lease) release() {
	if l.uses.Load()&exportedBit == 0 && l.uses.Add(^uint64(0)) == retiredBit {
		l.dispose()
	}
}

// markExported says that code outside the library holds the token: it lives
// until its task ends, however often it is superseded. The caller has acquired
// it, so that it may be retired and is not revoked. It fails if the token has
// been taken back meanwhile.
func (l *lease) markExported() bool {
	if l.uses.Load()&exportedBit == 0 {
		l.uses.Or(exportedBit)
	}
	return !l.isDead()
}

// retire gives the token no new uses, because it was superseded, evicted or
// good for one call only, and has it revoked when no call carries it.
func (l *lease) retire() {
	if l.uses.Or(retiredBit) == 0 {
		l.dispose()
	}
}
