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
	if cause := contextError(ctx); cause != nil {
		e.Code = contextCode(cause)
		return &ended{e, cause}
	}
	return e
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

func contextCode(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return "canceled"
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
	e := &credential.Error{Reason: credential.ErrIdentity, Detail: "the workload's assertion was not to be had"}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Code = "timeout"
	}
	return fromContext(ctx, e)
}

func failed(u *url.URL, code, detail string) error {
	return &credential.Error{Reason: credential.ErrIssuer, Code: code, Host: u.Host, Detail: detail}
}

// connectionError says that there was no answer. The cause is dropped: a
// url.Error repeats the query, others repeat what a server sent.
func connectionError(ctx context.Context, u *url.URL, err error) error {
	return fromContext(ctx, &credential.Error{Reason: credential.ErrIssuer, Code: connectionCode(err), Host: u.Host})
}

func connectionCode(err error) string {
	var network net.Error
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case isCertificate(err):
		return "tls"
	case !errors.As(err, &op):
		return "connection"
	case op.Op == "dial":
		return "dial"
	case op.Op == "remote error", op.Op == "local error": // a TLS alert, from them or to them
		return "tls"
	}
	return "connection"
}

func isCertificate(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		record       tls.RecordHeaderError
		authority    x509.UnknownAuthorityError
		hostname     x509.HostnameError
		certificate  x509.CertificateInvalidError
	)
	return errors.As(err, &verification) || errors.As(err, &record) ||
		errors.As(err, &authority) || errors.As(err, &hostname) || errors.As(err, &certificate)
}

// statusError makes an error of an answer that is not a 2xx. A flawed body
// costs no more than the server's own code.
func (re *reply) statusError() error {
	e := &credential.Error{Reason: credential.ErrIssuer, Host: re.url.Host}
	if re.isJSON() {
		if o, err := parseObject(re.body); err == nil {
			e.Code = errorCode(o)
		}
	}
	if e.Code == "" {
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
func errorCode(o object) string {
	s, _ := o.text("error")
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
