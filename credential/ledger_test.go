package credential_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// The ledger lists leases, revokes them, and blocks new ones until unblock is
// called.
func TestLedger_ListsRevokesAndBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ledger credential.Ledger
		m := &mint{ttl: time.Hour}
		share := func(o *credential.BrokerOptions) { o.Ledger = &ledger }
		one, two := newBroker(t, m, share), newBroker(t, m, share)
		ctx, _ := startTask(t, credential.TaskOptions{ID: "T", Tenant: "acme", Purpose: "p"})
		pay, mail := tool(t, "pay"), tool(t, "mail")
		if _, err := one.Credential(ctx, pay); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := two.Credential(ctx, mail); err != nil {
			t.Fatal(err)
		}
		all := ledger.Leases()
		if len(all) != 2 || all[0].Scope != pay.Any() || all[1].Scope != mail.Any() || all[0].ID == all[1].ID {
			t.Fatalf("inventory %+v", all)
		}
		if l := all[0]; l.Task != "T" || l.Tenant != "acme" || l.Purpose != "p" || l.State != credential.LeaseLive || l.Expires.Sub(l.Issued) != time.Hour {
			t.Errorf("lease %+v", l)
		}

		isPay := func(l credential.Lease) bool { return l.Scope.Name() == "pay" }
		if err := ledger.Revoke(t.Context(), isPay); err != nil {
			t.Fatal(err)
		}
		if n := len(m.alive()); n != 1 || len(ledger.Leases()) != 1 {
			t.Errorf("%d alive, %d in the inventory", n, len(ledger.Leases()))
		}
		if _, err := one.Credential(ctx, pay); err != nil || m.issues() != 3 {
			t.Errorf("after Revoke: %v, %d exchanges", err, m.issues())
		}

		unblock, err := ledger.Block(t.Context(), isPay)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := one.Credential(ctx, pay); !errors.Is(err, credential.ErrBlocked) {
			t.Errorf("under Block: %v", err)
		}
		if _, err := two.Credential(ctx, mail); err != nil {
			t.Errorf("another scope under Block: %v", err)
		}
		if m.issues() != 3 {
			t.Error("the issuer was asked under Block")
		}
		unblock()
		unblock()
		if _, err := one.Credential(ctx, pay); err != nil {
			t.Errorf("after unblock: %v", err)
		}
	})
}

// The inventory lists the oldest lease first, and no dead ones.
func TestLedger_ListsTheOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{}
		m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.ExpiresIn = new(time.Hour)
			if r.Scope.Name() == "s3" || r.Scope.Name() == "s17" {
				resp.ExpiresIn = new(time.Minute)
			}
			return nil
		}
		b := newBroker(t, m)
		one, _ := startTask(t, credential.TaskOptions{})
		two, _ := startTask(t, credential.TaskOptions{})
		var want []string
		for i := range 20 {
			time.Sleep(time.Second)
			name := fmt.Sprint("s", i)
			if _, err := b.Credential([]context.Context{one, two}[i%2], tool(t, name)); err != nil {
				t.Fatal(err)
			}
			if i != 3 && i != 17 && i != 5 {
				want = append(want, name)
			}
		}
		if err := b.Ledger().Revoke(t.Context(), func(l credential.Lease) bool { return l.Scope.Name() == "s5" }); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Minute)
		var got []string
		for _, l := range b.Ledger().Leases() {
			got = append(got, l.Scope.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("inventory %v, want %v", got, want)
		}
	})
}

// A lease expires once, although many goroutines find it dead at the same time.
func TestLedger_ReportsExpiryOnce(t *testing.T) {
	const leases = 2000
	var clock, expired atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(clock.Load()), time.Duration(clock.Load())
	})()
	b := newBroker(t, &mint{ttl: time.Minute}, func(o *credential.BrokerOptions) {
		o.Events = func(e credential.Event) {
			if e.Kind == credential.EventExpired {
				expired.Add(1)
			}
		}
	})
	s := tool(t, "pay")
	for range leases {
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	clock.Store(int64(2 * time.Minute))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { b.Ledger().Leases() })
	}
	wg.Wait()
	if err := b.Close(); err != nil { // the events are told by then
		t.Error(err)
	}
	if n := expired.Load(); n != leases {
		t.Errorf("%d leases expired %d times", leases, n)
	}
}

// The fingerprints by which a ledger compares tokens are keyed with a secret of
// the ledger. They differ between ledgers, and cannot be computed from the
// token.
func TestLedger_FingerprintsAreKeyed(t *testing.T) {
	token := secret.New(rand.Text())
	var prints [][sha256.Size]byte
	for range 2 {
		b := newBroker(t, &mint{ttl: time.Hour})
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		prints = append(prints, credential.Fingerprint(b.Ledger(), token))
	}
	unkeyed := hmac.New(sha256.New, make([]byte, sha256.Size))
	unkeyed.Write([]byte(secret.Reveal(token)))
	if prints[0] == prints[1] || prints[0] == sha256.Sum256([]byte(secret.Reveal(token))) || prints[0] == [sha256.Size]byte(unkeyed.Sum(nil)) {
		t.Error("the fingerprint of a token has no key, or everybody's")
	}
}

// A credential that is being issued during Revoke, Block or Close is not handed
// out, and is revoked.
func TestLedger_RevokesWhatIsBeingIssued(t *testing.T) {
	for _, name := range []string{"Revoke", "Block", "Close"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{})
				got := make(chan error, 1)
				go func() {
					_, err := b.Credential(ctx, tool(t, "pay"))
					got <- err
				}()
				synctest.Wait()
				all := func(l credential.Lease) bool { return l.ID == 0 }
				var err error
				switch name {
				case "Revoke":
					err = b.Ledger().Revoke(ctx, all)
				case "Block":
					_, err = b.Ledger().Block(ctx, all)
				case "Close":
					err = b.Close()
				}
				if err != nil {
					t.Error(err)
				}
				if err := <-got; err == nil {
					t.Error("handed out")
				}
				synctest.Wait()
				if n := len(m.alive()); n != 0 || len(m.given) != 1 {
					t.Errorf("%d given, %d alive", len(m.given), n)
				}
			})
		})
	}
}

// A revoked token is not used again: its handle is invalid, and the next call
// gets a new token.
func TestLedger_RevokedIsNotUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, w := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		if err := b.Ledger().Revoke(gone, nil); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Secret(); !errors.Is(err, credential.ErrExpired) {
			t.Errorf("Secret: %v", err)
		}
		resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if m.issues() != 2 || w.requests()[0].Header.Get("Authorization") != "Bearer "+m.given[1] {
			t.Errorf("%d exchanges; a token that was taken back was sent", m.issues())
		}
	})
}

// A sink that revokes each credential as it is issued makes the call fail,
// after two exchanges at most.
func TestLedger_RevokedAsItIsIssuedFailsTheCall(t *testing.T) {
	for _, single := range []bool{false, true} {
		m := &mint{ttl: time.Hour}
		var b *credential.Broker[scope.Tool]
		b = newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventIssued {
					_ = b.Ledger().Revoke(context.Background(), nil)
				}
			}
		})
		ctx, cancel := context.WithCancel(must(credential.StartTask(t.Context(), credential.TaskOptions{})))
		defer cancel()
		m.before = func(context.Context) error {
			if m.issues() > 100 { // without end
				cancel()
			}
			return nil
		}
		s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
		_, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if !errors.Is(err, credential.ErrRefused) || m.issues() != map[bool]int{false: 2, true: 1}[single] {
			t.Errorf("single use %v: %v after %d exchanges", single, err, m.issues())
		}
	}
}

// A revocation goes on when the caller of Ledger.Revoke stops waiting.
func TestLedger_RevocationOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			select {
			case <-time.After(5 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		b := newBroker(t, m)
		task, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(task, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := b.Ledger().Revoke(ctx, nil); !errors.Is(err, credential.ErrUnrevoked) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if m.tried() != 1 || len(m.alive()) != 0 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%d tries, %d alive", m.tried(), len(m.alive()))
		}
	})
}

func TestLedger_RevokeWithANilContextLeavesNothing(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{})
	_, _ = b.Credential(ctx, tool(t, "pay"))
	func() {
		defer func() { t.Log(recover()) }()
		_ = b.Ledger().Revoke(noContext, func(credential.Lease) bool { return true })
	}()
	if err := task.End(ctx); err != nil || len(m.alive()) != 0 {
		t.Errorf("%v, %d alive", err, len(m.alive()))
	}
}

// A match that panics matches, in Revoke as in Block.
func TestLedger_PanickingMatchMatches(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, name := range []string{"pay", "mail"} {
		if _, err := b.Credential(ctx, tool(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	boom := func(credential.Lease) bool { panic("boom") }
	if err := b.Ledger().Revoke(t.Context(), boom); err != nil || len(m.alive()) != 0 {
		t.Errorf("%v, %d alive", err, len(m.alive()))
	}
	unblock, err := b.Ledger().Block(t.Context(), boom)
	if err != nil {
		t.Error(err)
	}
	defer unblock()
	if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrBlocked) {
		t.Errorf("under a Block that panics: %v", err)
	}
}

func TestLedger_GoexitInMatchLeavesNoLease(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	on := false
	unblock, _ := b.Ledger().Block(ctx, func(credential.Lease) bool {
		if on {
			runtime.Goexit()
		}
		return false
	})
	on = true
	_, err := b.Credential(ctx, tool(t, "pay"))
	unblock()
	if n := len(b.Ledger().Leases()); n != 0 {
		t.Errorf("%v; %d leases left", err, n)
	}
}

// A Block is in force before the first credential is revoked: a call during
// that revocation is refused.
func TestLedger_BlockIsInForceBeforeItRevokes(t *testing.T) {
	var b *credential.Broker[scope.Tool]
	s := tool(t, "pay")
	ctx, _ := startTask(t, credential.TaskOptions{})
	m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
		if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrBlocked) {
			t.Errorf("meanwhile: %v", err)
		}
		return nil
	}}
	b = newBroker(t, m)
	if _, err := b.Credential(ctx, s); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ledger().Block(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if n := len(m.alive()); n != 0 || m.issues() != 1 {
		t.Errorf("%d alive after %d exchanges", n, m.issues())
	}
}

// unblock removes its own Block and no other.
func TestLedger_UnblockLiftsItsOwnBlock(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	ctx, _ := startTask(t, credential.TaskOptions{})
	names := []string{"a", "b", "c"}
	var unblock []func()
	for _, name := range names {
		u, err := b.Ledger().Block(t.Context(), func(l credential.Lease) bool { return l.Scope.Name() == name })
		if err != nil {
			t.Fatal(err)
		}
		unblock = append(unblock, u)
	}
	blocked := func() (out []string) {
		for _, name := range names {
			if _, err := b.Credential(ctx, tool(t, name)); errors.Is(err, credential.ErrBlocked) {
				out = append(out, name)
			}
		}
		return out
	}
	for i, want := range [][]string{names, {"a", "c"}, {"c"}, nil} {
		if got := blocked(); !slices.Equal(got, want) {
			t.Errorf("blocked %v, want %v", got, want)
		}
		if i < 3 {
			unblock[[]int{1, 0, 2}[i]]()
		}
	}
}
