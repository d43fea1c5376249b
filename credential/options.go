package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/internal/transport"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// BrokerOptions configures a [Broker]. Policy is required; the zero value of
// every other field is safe.
type BrokerOptions struct {
	// Policy is asked on every use, also of a cached credential. Required:
	// policy.Allow with a list, or policy.AllowAll, which says what it does.
	Policy policy.Decider

	// Binding says what the credentials are bound to. Zero means [Bearer]:
	// nothing. Once a broker requires a binding, none of its credentials leaves
	// unbound, whatever issuer and endpoints answer.
	Binding Binding

	// Ledger keeps the inventory. Nil means one of the broker's own. Share one
	// between brokers, of any kind, to see and take back everything at once.
	Ledger *Ledger

	// Logger gets one record for each decision, never a token. Nil: no log. Uses
	// of cached credentials are at debug level. If the process was started with
	// http2debug in GODEBUG, NewBroker logs a warning: see Base.
	Logger *slog.Logger

	// Events is called with the same decisions, uses of cached credentials
	// included, from many goroutines at once; it should be quick. The call that
	// was decided on waits for it. Revocations do not, unless 4,096 of their events
	// wait for it already. It may call back into the library. It must not request
	// the credential that the event is about: the call would wait for this
	// callback. All this goes for Logger, too. Nil: events are discarded. Metrics
	// and traces are made from it.
	Events func(Event)

	// Base carries the requests of the broker's clients. Nil means a transport
	// of the broker's own, without proxies from the environment and without
	// cookies. A Base must not follow redirects or add credentials: that would
	// undo the pin. Rules about addresses belong here, in the Control of a
	// net.Dialer: a scope pins a host's name, not the address that it resolves to.
	//
	// With http2debug=1 or 2 in GODEBUG, net/http prints all that it sends over
	// HTTP/2, credentials included. The broker's own transport then speaks
	// HTTP/1.1 only; a Base that speaks HTTP/2 shows them.
	//
	// If Binding is one of mutual TLS, Base must be nil or an [*http.Transport]
	// that makes its TLS connections itself. The broker copies it for each
	// certificate, without its ClientSessionCache and the entries of its
	// TLSNextProto. Its TLSClientConfig says which servers are trusted. Nil trusts
	// the system's certificate authorities. For servers that have an X.509-SVID,
	// see workload.Source.Peer.
	Base http.RoundTripper

	// MaxCached bounds how many credentials are kept ready. Zero means 16,384.
	// When the cache is full, one credential is evicted, and revoked once no call
	// uses it. A task that holds a quarter of the cache evicts its own.
	MaxCached int

	// IssueTimeout bounds one request to the issuer, retries of its own included.
	// Zero means 10 seconds.
	IssueTimeout time.Duration
}

const (
	defaultMaxCached    = 16384
	defaultIssueTimeout = 10 * time.Second
)

// check names the first field that is wrong.
func (o *BrokerOptions) check() error {
	invalid := func(format string, args ...any) error {
		return &Error{Reason: ErrInvalid, Detail: fmt.Sprintf(format, args...)}
	}
	switch {
	case o == nil || isNil(o.Policy):
		return invalid("BrokerOptions.Policy is nil; give policy.Allow with the scopes that may be used, or policy.AllowAll()")
	case o.Binding > RequireMutualTLS:
		return invalid("BrokerOptions.Binding is %d; use one of the constants from Bearer (%d) to RequireMutualTLS (%d)", o.Binding, Bearer, RequireMutualTLS)
	case o.Binding.isTLS() && o.Base != nil && !showsCertificates(o.Base):
		return invalid("BrokerOptions.Base is a %T; with mutual TLS it must be nil or an *http.Transport without DialTLS and DialTLSContext, which can be given a certificate", o.Base)
	case o.MaxCached < 0:
		return invalid("BrokerOptions.MaxCached is %d; use a positive number, or 0 for %d", o.MaxCached, defaultMaxCached)
	case o.IssueTimeout < 0:
		return invalid("BrokerOptions.IssueTimeout is %v; use a positive duration, or 0 for %v", o.IssueTimeout, defaultIssueTimeout)
	}
	return nil
}

// NewBroker returns a broker for what issuer issues. A model vendor's issuer is
// an Issuer[scope.Model] and makes a Broker[scope.Model], nothing else. An error
// matches [ErrInvalid] and names the field; nothing was started then.
func NewBroker[S scope.Scope](issuer Issuer[S], o *BrokerOptions) (*Broker[S], error) {
	if isNil(issuer) {
		return nil, &Error{Reason: ErrInvalid, Detail: "the issuer is nil; give an Issuer such as exchange.New's"}
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	certified, _ := issuer.(MutualTLSIssuer)
	if o.Binding.isTLS() && certified == nil {
		return nil, &Error{Reason: ErrInvalid, Detail: "BrokerOptions.Binding is one of mutual TLS and the issuer has no certificate; give a MutualTLSIssuer, such as that of exchange.New with Config.MutualTLS"}
	}
	if o.Binding.isTLS() && neverCertified(certified) {
		return nil, &Error{Reason: ErrInvalid, Detail: "BrokerOptions.Binding is one of mutual TLS and the issuer was not made to show its certificate; for that of exchange.New set Config.MutualTLS"}
	}
	b := &core{
		ask:     typed(issuer),
		policy:  o.Policy,
		binding: o.Binding,
		ledger:  cmp.Or(o.Ledger, new(Ledger)),
		events:  &recorder{logger: o.Logger, sink: o.Events},
		revoker: newRevoker(issuer),
		timeout: cmp.Or(o.IssueTimeout, defaultIssueTimeout),
		cache:   newCache(cmp.Or(o.MaxCached, defaultMaxCached)),
		flights: map[key]*flight{},
		done:    make(chan struct{}),
	}
	b.life, b.stop = context.WithCancel(context.Background())
	b.rejects, _ = lru.New[key, rejection](maxRejections) // fails for sizes below one only
	if o.Base != nil {
		b.carry = o.Base.RoundTrip
	} else {
		own := newBase()
		b.carry, b.idle = own.RoundTrip, append(b.idle, own.CloseIdleConnections)
	}
	if i, ok := issuer.(Confirmer); ok {
		b.confirm = i.Confirm
	}
	if o.Binding.isTLS() {
		base, _ := o.Base.(*http.Transport)
		b.certs = newPool(certified, cmp.Or(base, newBase()))
		b.idle = append(b.idle, b.certs.CloseIdle)
	}
	if i, ok := issuer.(interface{ CloseIdleConnections() }); ok {
		b.idle = append(b.idle, i.CloseIdleConnections)
	}
	if i, ok := issuer.(Identified); ok {
		b.workload = i.Workload().String()
	}
	if o.Logger != nil && transport.PrintsHTTP2() {
		quietly(func() {
			o.Logger.Warn("credential: GODEBUG has http2debug: net/http prints credentials that are sent over HTTP/2; the library's own transports use HTTP/1.1, others must not use HTTP/2")
		})
	}
	return &Broker[S]{core: b}, nil
}

// newBase returns a broker's own transport, with room for the bursts of agents.
func newBase() *http.Transport {
	t := transport.New()
	t.MaxIdleConnsPerHost = 64
	return t
}

// showsCertificates reports whether base can be given a certificate.
func showsCertificates(base http.RoundTripper) bool {
	t, ok := base.(*http.Transport)
	return ok && mutual.Usable(t)
}

// neverCertified reports whether an issuer says that it was not made to show a
// certificate. Any other error may pass.
func neverCertified(issuer MutualTLSIssuer) (never bool) {
	quietly(func() {
		_, err := issuer.Certificate()
		never = errors.Is(err, ErrInvalid)
	})
	return never
}

// isNil reports whether v is nil, or an interface around a nil func, pointer
// or map, which would fail at its first use.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Func, reflect.Pointer, reflect.Map:
		return r.IsNil()
	}
	return false
}
