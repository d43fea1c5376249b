package credential

import "net/http"

// isCredentialHeader reports whether a header, in canonical form, carries a
// credential of some kind. The caller's are dropped: one request carries one
// credential, and a model may have written the others. It is a list, because
// no rule tells a credential from another header; what is not on it is sent.
func isCredentialHeader(canonical string) bool {
	switch canonical {
	case "Authorization", "Proxy-Authorization", "Cookie", "Cookie2",
		"Dpop", "Txn-Token", "Workload-Identity-Token", "Workload-Proof-Token",
		"Oauth-Client-Attestation", "Oauth-Client-Attestation-Pop",
		"X-Api-Key", "Api-Key", "Apikey", "X-Apikey", "X-Goog-Api-Key", "X-Functions-Key",
		"Ocp-Apim-Subscription-Key", "X-Auth-Token", "X-Access-Token", "X-Vault-Token",
		"X-Amz-Security-Token", "Private-Token", "X-Forwarded-Access-Token", "X-Serverless-Authorization":
		return true
	}
	return false
}

// withCredential returns a copy of h in which our credential is the only one.
// Keys that somebody wrote in non-canonical form are looked through: net/http
// would send them beside ours.
func withCredential(h http.Header, value string) http.Header {
	out := make(http.Header, len(h)+1)
	for k, v := range h {
		if !isCredentialHeader(http.CanonicalHeaderKey(k)) {
			out[k] = v[:len(v):len(v)] // whoever appends does not write into the caller's
		}
	}
	out["Authorization"] = []string{value}
	return out
}
