package credential

import "context"

// Close refuses new work, cancels what is being issued, revokes every
// credential of the broker, has the last events told, and stops what it
// started. It waits at most 2 seconds and returns nil when all are revoked, else
// an [*UnrevokedError] that names those left, those that were still being issued
// included; nobody tries them again. Close is idempotent, and every call returns
// the same. A [Task.End] that comes later is safe.
func (b *Broker[S]) Close() error {
	if b.closed.CompareAndSwap(false, true) {
		b.close()
	}
	<-b.done
	return b.closeErr
}

func (b *Broker[S]) close() {
	b.stop() // flights; they see that they are closed and have what comes revoked
	ctx, cancel := context.WithTimeout(context.Background(), defaultEndTimeout)
	defer cancel()
	all := b.ledger.find(func(l *lease) bool { return l.owner == b.revoker })
	for _, l := range all {
		b.ledger.revoke(ctx, l)
	}
	await(ctx, all)
	b.closeErr = unrevoked(all, true)
	left := b.revoker.close()
	close(b.done) // before anything of the user's, which may call Close
	for _, v := range left {
		b.revoker.abandon(v)
	}
	for _, closeIdle := range b.idle {
		closeIdle()
	}
	b.revoker.heard(ctx) // a program ends here, and its audit trail should not end before
}
