// Package exchange gets credentials from an OAuth 2.0 authorization server.
//
// An [Issuer] is what a credential.Broker mints from. It authenticates with the
// workload's JWT-SVID, so that no client secret exists, and asks for one scope
// at one resource at a time:
//
//	issuer, err := exchange.New[scope.Tool](exchange.Config{
//		Issuer:   "https://as.example.com", // its metadata is loaded when first needed
//		Workload: self,                     // an identity.Source
//	})
//	tools, err := credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.Allow(refund)})
//
// # Delegation and impersonation
//
// Which request is made follows from the task, unless [Config.Grant] says
// otherwise. A task without a subject: the workload acts for itself, by client
// credentials (RFC 6749 section 4.4). A task with one: a token exchange (RFC
// 8693) with the user's token as subject_token and the workload's JWT-SVID as
// actor_token. That is delegation: the issued token can name both, the workload
// in "act". Without an actor_token the exchange is impersonation: the workload
// becomes the user, and nobody can tell them apart afterwards ("delegation is
// impossible with only a subject_token", RFC 8693 appendix A.1.1). It happens
// only where [GrantImpersonation] asks for it.
//
// # How the client authenticates
//
// By the JWT-SVID as client assertion, unless the [Config] says otherwise: by
// the X.509-SVID in the TLS handshake with [Config.MutualTLS], or by a
// [Config.ClientSecret] at servers that know nothing better. It is always one
// way, and never another one when that fails.
//
// # What the token is bound to
//
// Where the broker's Binding asks for it, the token request carries a proof of
// the task's key (RFC 9449 section 5), signed as the server's metadata says, with
// the nonce that the server wants; or it goes over a connection that shows the
// workload's certificate (RFC 8705 section 3), which takes [Config.MutualTLS].
// Whether the answer is bound to them is for the broker to judge; [Issuer.Confirm]
// asks the server about a token that cannot be read.
//
// # What is sent, and to whom
//
// Subject tokens and assertions go to the token endpoint of the one configured
// server, over TLS (plain http to a loopback address is accepted, for tests and
// sidecars), in the body of a POST, and nowhere else: redirects are not
// followed, because a 307 repeats the whole form at another host, and neither
// proxies nor base URLs are taken from the environment. The JWT-SVID is for
// exactly one audience, the server's issuer identifier.
//
// # What is believed
//
// golang.org/x/oauth2 makes the token requests, and nothing that it parsed is
// used: it takes "Access_Token" for "access_token", the last of two members,
// and a body of any type. Under it sits a guard that reads the answer once and
// strictly. An answer that must not be used but holds one readable token is
// returned together with an error, so that the broker can have the token
// revoked. Whether scope, lifetime and audience are those asked for is for the
// broker to judge.
//
// Every error of a request holds a [*credential.Error], for errors.As, with a
// code, a host and, where the connection failed, what to check; one that came
// of the end of the caller's context also matches the context's error. None
// repeats an error_description, a body, a query or a
// token: servers echo what they were sent.
package exchange
