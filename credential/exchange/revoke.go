package exchange

import (
	"context"
	"net/http"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
)

// revoke is RFC 7009 section 2. Only 200 means that the token is dead, or was
// not known; the body says nothing (section 2.2).
func (c *client) revoke(ctx context.Context, token secret.Text, hint credential.TokenHint) error {
	if token.IsZero() {
		return invalid("there is no token to revoke")
	}
	to, err := c.endpoints(ctx, c.config.RevocationURL)
	if err != nil {
		return err
	}
	if to.revocation == "" {
		return &credential.Error{
			Reason: credential.ErrIssuer, Code: "unsupported_token_type", Host: c.host(),
			Detail: "the server has no revocation endpoint; configure RevocationURL where it has one that its metadata does not name",
		}
	}
	re, err := c.ask(ctx, to.revocation, token, hint)
	switch {
	case err != nil:
		return err
	case re.status != http.StatusOK:
		// 503: "the client must assume the token still exists" (section 2.2.1).
		return re.statusError()
	}
	return nil
}

// ask posts one token to an endpoint that is about tokens, with the client
// authentication of the token endpoint.
func (c *client) ask(ctx context.Context, endpoint string, token secret.Text, hint credential.TokenHint) (reply, error) {
	f, err := c.clientForm(ctx)
	if err != nil {
		return reply{}, err
	}
	f.Set("token", secret.Reveal(token))
	if hint != "" {
		f.Set("token_type_hint", string(hint))
	}
	return c.guard.postForm(ctx, endpoint, f)
}

// host returns the host of the server, for errors.
func (c *client) host() string {
	if c.config.TokenURL != "" {
		return hostOf(c.config.TokenURL)
	}
	return hostOf(c.config.Issuer)
}
