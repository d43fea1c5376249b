// Package taskcred gives agent code one credential for one tool call.
//
// A static API key in a prompt-driven program opens the model, the vector store
// and every tool, for ever, to whoever can steer the prompt. With taskcred there
// is no such key:
//
//   - who calls is proved by the workload's SPIFFE identity, never by a stored
//     secret;
//   - what may be reached is one scope: one endpoint, one tenant, one purpose, a
//     few permissions, a few minutes;
//   - whether it may, now, is asked of a policy on every use;
//   - the credential is minted when the task begins to need it, kept until its
//     time is up, and revoked when the task ends;
//   - a copy of it is worth nothing where it is bound to a key of the task or to
//     the workload's certificate;
//   - model, retrieval and tool access are different Go types: mixing them does
//     not compile.
//
// # The tour
//
// Start with the Example below, or with
//
//	go run ./examples/quickstart
//
// which runs one task with everything embedded and says what happens. Then:
//
//   - [github.com/taskcred/taskcred/scope] says what one call may reach. The one
//     rule by which a request is in or out is scope.Any.Covers.
//   - [github.com/taskcred/taskcred/scope/policy] decides, with trusted facts
//     apart from what a prompt may have chosen.
//   - [github.com/taskcred/taskcred/identity] names workload and subject;
//     [github.com/taskcred/taskcred/identity/workload] asks a SPIFFE agent;
//     [github.com/taskcred/taskcred/identity/secret] keeps tokens from being
//     printed.
//   - [github.com/taskcred/taskcred/credential] has tasks, credentials, brokers,
//     transports and the ledger. Its file broker.go reads as the list of what
//     happens on a call.
//   - [github.com/taskcred/taskcred/credential/exchange] mints over OAuth 2.0:
//     token exchange (RFC 8693), client credentials, RFC 7523; it revokes and
//     introspects (RFC 7009, RFC 7662).
//   - [github.com/taskcred/taskcred/credential/dpop] makes proofs of possession
//     (RFC 9449), and can be used alone.
//   - [github.com/taskcred/taskcred/credential/credentialtest] and
//     [github.com/taskcred/taskcred/identity/identitytest] are for your own
//     tests, as httptest is: an authorization server that enforces, a trust
//     domain behind a real Workload API.
//
// Imports run down one way only: examples, credentialtest, exchange,
// credential, credential/dpop; below them scope/policy and scope on one side, identity/workload,
// identity and identity/secret on the other. Only identity/workload and
// identitytest compile gRPC.
//
// # What it does not protect from
//
// Abuse within a scope while it is granted: ask for narrow scopes. Other code in
// the same process, which can read its memory: strings cannot be erased. A
// server that does not check audience, expiry or revocation of what it is
// given: a self-contained token that nobody introspects lives until it
// expires, whatever was revoked. A bearer token that is stolen while its task
// runs: its short life limits the thief, and only binding it to a key stops one;
// see credential.Binding and
//
//	go run ./examples/bound
//
// # Compatibility
//
// Before version 1, names may change between minor versions; the CHANGELOG says
// so. New fields of options are safe at their zero value.
package taskcred
