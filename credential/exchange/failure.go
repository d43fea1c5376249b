package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/internal/object"
)

// maxRetryAfter caps what a server can ask for.
const maxRetryAfter = time.Hour

// ended is an error about the end of the caller's context. It matches the
// context's error and is a *credential.Error; nothing else is in its tree.
type ended struct {
	err *credential.Error
	ctx error // context.Canceled or context.DeadlineExceeded
}

// Error returns the text of the credential.Error.
func (e *ended) Error() string { return e.err.Error() }

// Unwrap returns both errors.
func (e *ended) Unwrap() []error { return []error{e.err, e.ctx} }

// fromContext returns e as an error about the end of ctx.
func fromContext(ctx context.Context, e *credential.Error) error {
	switch cause := contextError(ctx); cause {
	case nil:
		return e
	case context.DeadlineExceeded:
		e.Code, e.Detail = "timeout", "the deadline of the caller's context passed before the answer came"
		return &ended{e, cause}
	default:
		e.Code, e.Detail = "canceled", "the caller's context was canceled before the answer came"
		return &ended{e, cause}
	}
}

// contextError returns context.Canceled or context.DeadlineExceeded when ctx
// has ended, else nil. A connection notices a deadline by its own timer,
// sometimes before the context does.
func contextError(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	switch err := ctx.Err(); {
	case errors.Is(err, context.DeadlineExceeded), err == nil && ok && !time.Now().Before(deadline):
		return context.DeadlineExceeded
	case err != nil:
		return context.Canceled
	}
	return nil
}

func invalid(detail string) error {
	return &credential.Error{Reason: credential.ErrInvalid, Detail: detail}
}

func badAssertion(detail string) error {
	return &credential.Error{Reason: credential.ErrIdentity, Code: "bad_assertion", Detail: detail}
}

// identityError says that there is no assertion. The source's own error is
// dropped: it may hold anything.
func identityError(ctx context.Context, err error) error {
	e := &credential.Error{Reason: credential.ErrIdentity, Detail: "the workload's assertion could not be obtained"}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Code, e.Detail = "timeout", "the workload's assertion could not be obtained in time; see Config.Timeout"
	}
	return fromContext(ctx, e)
}

// noCertificate says that there is no certificate. As with an assertion, why is
// the source's to log.
func noCertificate() error {
	return &credential.Error{Reason: credential.ErrIdentity, Code: "no_certificate", Detail: "the workload's certificate could not be obtained"}
}

func failed(u *url.URL, code, detail string) error {
	return &credential.Error{Reason: credential.ErrIssuer, Code: code, Host: u.Host, Detail: detail}
}

// connectionError says that there was no answer. The cause is dropped: a
// url.Error repeats the query, others repeat what a server sent. What is said
// instead are sentences of our own.
func connectionError(ctx context.Context, u *url.URL, err error) error {
	f := connectionFlaw(err)
	return fromContext(ctx, &credential.Error{Reason: credential.ErrIssuer, Code: f.code, Host: u.Host, Detail: f.detail})
}

func connectionFlaw(err error) flaw {
	var network net.Error
	var op *net.OpError
	isOp := errors.As(err, &op)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return flaw{"timeout", "no complete answer came in time; check that the server can be reached, and see Config.Timeout"}
	case errors.Is(err, context.Canceled):
		return flaw{"canceled", "the transport gave the request up"}
	case isCertificate(err):
		return flaw{"tls", "the server's certificate was not accepted; see Config.Base for certificate authorities of your own"}
	case isPlain(err):
		return flaw{"tls", "the server does not speak TLS there; check scheme and port of the URL"}
	case isOp && op.Op == "dial":
		return flaw{"dial", "no connection could be made; check host, port and DNS, and see Config.Base where a proxy is needed"}
	case isOp && (op.Op == "remote error" || op.Op == "local error"): // a TLS alert, from them or to them
		return flaw{"tls", "the TLS handshake failed; the server may want a client certificate or have no TLS 1.2; see Config.Base"}
	}
	return flaw{"connection", "the connection ended before a complete answer was read; the server, or a proxy before it, may have closed it"}
}

func isCertificate(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		authority    x509.UnknownAuthorityError
		hostname     x509.HostnameError
		certificate  x509.CertificateInvalidError
	)
	return errors.As(err, &verification) ||
		errors.As(err, &authority) || errors.As(err, &hostname) || errors.As(err, &certificate)
}

// isPlain reports whether something else than TLS came back. net/http says it
// in words of its own where that was HTTP.
func isPlain(err error) bool {
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok || errors.Is(err, http.ErrSchemeMismatch)
}

// statusError makes an error of an answer that is not a 2xx. A flawed body
// costs no more than the server's own code.
func (re *reply) statusError() error {
	e := &credential.Error{Reason: credential.ErrIssuer, Host: re.url.Host}
	if re.isJSON() {
		if o, err := object.Parse(re.body); err == nil {
			e.Code = errorCode(o)
		}
	}
	// A server that is busy or broken has not answered the request. A word of its
	// own would hide that, and with it that it must be left alone.
	busy := re.status == http.StatusTooManyRequests || re.status >= http.StatusInternalServerError
	if e.Code == "" || busy && e.Code != "server_error" && e.Code != "temporarily_unavailable" {
		e.Code = httpCode(re.status)
	}
	if re.status == http.StatusTooManyRequests || re.status == http.StatusServiceUnavailable {
		e.RetryAfter = retryAfter(re.header.Get("Retry-After"), time.Now())
	}
	return e
}

func httpCode(status int) string { return fmt.Sprintf("http_%d", status) }

// errorCode returns the "error" of RFC 6749 section 5.2 where it may be shown,
// else "". That is narrower than the RFC's grammar: all registered codes are
// short words of lower-case letters and underscores, and what is shown must
// neither be an echoed token nor talk to a model.
func errorCode(o object.Object) string {
	s, _ := o.Text("error")
	bad := func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' }
	if len(s) > 40 || strings.ContainsFunc(s, bad) {
		return ""
	}
	return s
}

// retryAfter reads the header of RFC 9110 section 10.2.3: seconds or a date. It
// is 0 when there is none that can be read, and never more than maxRetryAfter.
func retryAfter(s string, now time.Time) time.Duration {
	if s == "" || len(s) > 64 {
		return 0
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(s)
		if err != nil || n > int(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(n) * time.Second
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxRetryAfter)
}

// asError returns the *credential.Error of an error of this package.
func asError(err error) *credential.Error {
	e, _ := errors.AsType[*credential.Error](err)
	return e
}
