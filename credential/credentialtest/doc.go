// Package credentialtest is for tests of code that uses taskcred, as
// [net/http/httptest] is for code that uses HTTP. It has
//
//   - [Issuer], an issuer in memory for a first test. It issues a token for every
//     request and knows what became of each;
//   - [Server], an authorization server that enforces what it promises: who
//     may ask, for what, on whose behalf, for how long. Its ledger tells what
//     became of every token;
//   - [Resource], a server that checks the tokens it is given. Both take tokens
//     that are bound to a key ([DPoP], RFC 9449) or to a certificate (RFC 8705);
//   - [Network], which reaches both without sockets, so that they work inside
//     the bubbles of [testing/synctest];
//   - [Script], an authorization server that says what it is told to, as a
//     malicious or broken one would;
//   - [Proxy], through which connections to any server are reset, stalled, cut
//     off or refused, and [FaultyTransport], which does the same in memory;
//   - [NoLeak], which looks for secrets in all that a value can be printed as,
//     and [NoReach], which looks for them in all that it leads to;
//   - [TestIssuer], a conformance test for a credential.Issuer of your own.
//
// It is for tests and for programs to learn from only, and insecure anywhere
// else: keys and tokens live in memory, users are signed in without a
// question, and anyone who holds a *Server reads every token.
//
// # First use
//
// A test of agent code needs no server and no socket. Here refund is the tool's
// scope and refundOrder is the code under test:
//
//	issuer, tool := new(credentialtest.Issuer[scope.Tool]), new(credentialtest.Network)
//	err := tool.Handle("https://pay.example.com", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
//		if token, active := issuer.Find(r); !active || token.Scope != "refunds:create" {
//			t.Errorf("%s %s: permissions %q, active %t", r.Method, r.URL, token.Scope, active)
//		}
//	}))
//	broker, err := credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.Allow(refund), Base: tool})
//	ctx, task, err := credential.StartTask(t.Context(), credential.TaskOptions{Purpose: "refund order 42"})
//	err = refundOrder(ctx, broker.Client(refund), "42")
//	err = task.End(ctx)
//	if left := issuer.Active(); len(left) > 0 {
//		t.Errorf("%d tokens outlived the task", len(left))
//	}
//
// [Issuer.Fail] and [Issuer.Hold] make the issuer fail or wait; [Issuer].Answer
// changes what it answers.
//
// # With an authorization server
//
// In a test of an agent whose trust domain is td, an identitytest.TrustDomain:
//
//	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
//		Bundles: td,
//		Clients: []credentialtest.Client{{ID: "spiffe://example.org/agent", MayActFor: true}},
//	})
//	defer as.Close()
//	pay, err := credentialtest.NewResource(&credentialtest.ResourceOptions{
//		Server: as, URL: "/v1/refunds", Permissions: []string{"refunds:create"},
//	})
//	defer pay.Close()
//	err = as.Allow("spiffe://example.org/agent", credentialtest.Permit{
//		Resource: pay.URL(), Permissions: []string{"refunds:create"},
//	})
//	issuer, err := exchange.New[scope.Tool](exchange.Config{
//		Issuer: as.Issuer(), Workload: td.Source("/agent"), Base: as.Transport(),
//	})
//	broker, err := credential.NewBroker(issuer, &credential.BrokerOptions{
//		Policy: policy.AllowAll(), Base: as.Transport(),
//	})
//	user := as.SubjectToken("alice", 0)
//	// … run the task for user, with scopes at pay.URL(), and end it …
//	if left := as.Active(); len(left) > 0 {
//		t.Errorf("%d tokens outlived the task", len(left))
//	}
//
// The transport of [Server.Transport] goes into both exchange.Config.Base, which
// carries the requests for tokens, and credential.BrokerOptions.Base, which
// carries the calls: it trusts the certificate of every Server and [Resource] of
// this package, or is the [Network] that they are on. Without the first, tokens
// cannot be obtained (code "tls"); without the second, the calls fail.
//
// Servers listen on loopback addresses only. Secrets of tests are generated
// with [Canary] and never written down.
package credentialtest
