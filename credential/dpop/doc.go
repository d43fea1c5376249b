// Package dpop proves possession of the key that an OAuth 2.0 access token is
// bound to (DPoP, RFC 9449). Somebody who sees such a token cannot use it: each
// request also carries a proof, signed with a key that never leaves the process.
//
// A [Transport] is all that a client of one server needs:
//
//	key, err := dpop.NewKey("") // ES256
//	defer key.Close()
//	client := &http.Client{Transport: &dpop.Transport{
//		Key:    key,
//		Origin: "https://api.example.com", // and nowhere else
//		Token:  func(ctx context.Context) (string, error) { return token, nil },
//	}}
//	resp, err := client.Do(req)
//
// A [Binder] does the same for a caller with a transport of its own, and
// [Key.Proof] for one that sends no HTTP request itself. The token is bound to
// the key when it is issued: send the token request with a proof of the same
// key, and check that the answer's token_type is "DPoP" and that the token, where
// it can be read, names [Key.Thumbprint] in cnf.jkt (sections 5 and 6). This
// package does not look at tokens.
//
// # What it does not protect from
//
// Code in the same process, which can have the key sign as it likes, also
// proofs for later. A server that does not check: a proof is worth what the one
// who reads it verifies, and one that keeps no record of jti accepts a proof
// that was seen once more within its time window. Changes to the body, the
// query and other headers, which no proof covers (section 11.7). Use a key for
// one task, short-lived tokens, and TLS.
package dpop
