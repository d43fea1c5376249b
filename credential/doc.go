// Package credential gives agent code one credential for one tool call.
//
// A [Task] is one unit of an agent's work; it rides in the context. A [Broker]
// mints credentials for scopes of one kind from one [Issuer], keeps them until
// their time is up, asks a policy on every use, and revokes them when the task
// ends. A [Transport] attaches them where they belong and nowhere else:
//
//	tools, err := credential.NewBroker(issuer, &credential.BrokerOptions{
//		Policy: policy.Allow(refund), // asked on every use
//		Logger: slog.Default(),       // one record per decision, never a token
//	})
//	defer tools.Close()
//	client := tools.Client(refund) // made once, shared: the task rides in ctx
//
//	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{
//		Tenant: "acme", Purpose: "refund order 42", Subject: user, Timeout: 5 * time.Minute,
//	})
//	defer task.End(ctx) // revokes everything the task was given
//
//	resp, err := client.Do(req.WithContext(ctx)) // refused anywhere but there
//
// Model, retrieval and tool credentials are different types: see [Credential].
// [BrokerOptions].Binding makes a copied token useless, by a key of the task or by
// the workload's certificate: see [Binding]. The file broker.go reads as the list of what happens on a call.
//
// # What is promised
//
//   - A token goes to its scope's origin, path and methods, on every hop.
//   - Two tasks share nothing; within a task, only equal scopes do.
//   - The policy is asked on every use, and can only narrow.
//   - After [Task.End], the deadline or a cancellation nothing more is issued or
//     sent, and each token is revoked or named in an error or event.
//   - An answer of the issuer that is wider or other than what was asked for is
//     refused and revoked.
//   - Whatever is unclear is a no: no error, panic or silence lets a call pass.
//   - No token shows in errors, logs, events or any printed value.
//   - Where a binding is required, no token goes out that is not bound to a key of
//     ours, and none that is bound without the proof.
//
// # What it does not protect from
//
// Abuse within a scope while it is granted; other code in the same process,
// which can read its memory and use its keys; a server that does not check what
// it is given; a revocation that the issuer does not do; a bearer token that is
// copied while its task runs. Short lives bound all of these.
//
// # Weight
//
// This package compiles golang-lru, go-jose (to read what a JWT says) and
// go-spiffe's spiffeid, and never gRPC.
package credential
