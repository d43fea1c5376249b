package main

// bindings are those of tokens that are bound to a key or a certificate.
var bindings = []mutant{
	{
		defence: "an unbound token is no DPoP token",
		file:    "credential/verify.go",
		old:     `case w.binding == RequireDPoP: // RFC 9449 section 5: it must be discarded`,
		new:     `case false:`,
		fails:   tests{"TestDPoPUnsupported"},
	},
	{
		defence: "a token is bound to our key",
		file:    "credential/verify.go",
		old:     `case is != w.holder.is:`,
		new:     `case is == Confirmation{}:`,
		fails:   tests{"TestBindingAnswers/required, another key", "TestBindingAnswers/required, a certificate", "TestBindingAnswers/required, two at once", "TestBindingAnswers/required, empty cnf", "TestBindingAnswers/required, jkt is a list", "TestBindingAnswers/certificate, another", "TestBindingAnswers/certificate, a key", "TestBindingAnswers/certificate preferred, another"},
	},
	{
		defence: "a DPoP token says its key",
		file:    "credential/verify.go",
		old:     `case c.Cnf == nil && told:`,
		new:     `case false:`,
		fails:   tests{"TestBindingAnswers/preferred, no cnf"},
	},
	{
		defence: "a token must be bound where that is required",
		file:    "credential/verify.go",
		old:     `case c.Cnf == nil && w.binding.required():`,
		new:     `case false:`,
		fails:   tests{"TestBindingAnswers/certificate, none", "TestMutualTLSUnbound"},
	},
	{
		defence: "a Bearer token is not bound to a key",
		file:    "credential/verify.go",
		old:     `case w.holder == nil, w.binding.isDPoP() && !told:`,
		new:     `case w.holder == nil:`,
		fails:   tests{"TestBindingAnswers/preferred, Bearer that is bound"},
	},
	{
		defence: "introspection says our key",
		file:    "credential/holder.go",
		old:     `case is != w.holder.is || w.binding.isDPoP() && !l.bound:`,
		new:     `case false:`,
		fails:   tests{"TestBindingAnswers/required, opaque, another", "TestBindingAnswers/certificate, opaque, another", "TestBindingAnswers/preferred, opaque Bearer that is bound"},
	},
	{
		defence: "nobody's word is no binding",
		file:    "credential/holder.go",
		old:     `if l.bound || !w.binding.required() {`,
		new:     `if true {`,
		fails:   tests{"TestBindingAnswers/certificate, opaque", "TestBindingAnswers/certificate, opaque, no word", "TestBindingAnswers/certificate, opaque, no answer", "TestBindingPanics"},
	},
	{
		defence: "a bound credential stays in its transport",
		file:    "credential/broker.go",
		old: `	case l.bound:
`,
		new: `	case false:
`,
		fails: tests{"TestBoundIsNotPortable"},
	},
	{
		defence: "a key ends with its task",
		file:    "credential/end.go",
		old: `	t.closeKeys()
`,
		new:   "",
		fails: tests{"TestKeyPerTask"},
	},
	{
		defence: "a certificate takes its credentials along",
		file:    "credential/holder.go",
		old: `	out := b.cache.removeBound(old)
`,
		new: `	var out []*lease
`,
		fails: tests{"TestMutualTLSRotation"},
	},
	{
		defence: "nothing is kept of a certificate that was replaced",
		file:    "credential/flight.go",
		old:     `case k.holder != nil && k.holder.stale.Load(): // for those who wait, and for nobody else`,
		new:     `case false:`,
		fails:   tests{"TestMutualTLSRotationDuringIssuing"},
	},
	{
		defence: "connections of a replaced certificate drain",
		file:    "credential/use.go",
		old:     `h != nil && h.stale.Load()`,
		new:     `h != nil && false`,
		fails:   tests{"TestMutualTLSDrains"},
	},
	{
		defence: "a credential goes over connections of its certificate",
		file:    "credential/send.go",
		old: `		carry = h.carry // also what is not bound: no other connection is better
`,
		new:   "",
		fails: tests{"TestMutualTLS", "TestMutualTLSRotation"},
	},
	{
		defence: "a proof that is not accepted blames no credential",
		file:    "credential/transport.go",
		old:     `resp.StatusCode == http.StatusUnauthorized && l.proves() && proofFlaw(resp.Header) != "":`,
		new:     `false:`,
		fails:   tests{"TestNonceNever/tool", "TestProofSkew"},
	},
	{
		defence: "certificates need TLS",
		file:    "credential/transport.go",
		old:     `if b.binding.isTLS() && req.URL.Scheme != "https" {`,
		new:     `if false {`,
		fails:   tests{"TestBindingOptions"},
	},
	{
		defence: "a certificate that was replaced does not come back",
		file:    "credential/certificates.go",
		old: `		return c.current.Load(), nil, nil
	}
	if now`,
		new: `		return old, nil, nil
	}
	if now`,
		fails: tests{"TestLateCertificate"},
	},
	{
		defence: "connections that come free late are closed",
		file:    "credential/internal/mutual/mutual.go",
		old: `	time.AfterFunc(DrainAgain, t.CloseIdleConnections)
`,
		new:   "\t_ = time.AfterFunc\n",
		fails: tests{"TestManyRotations"},
		in:    "credential",
	},
	{
		defence: "connections that show a certificate are not given to others",
		file:    "credential/internal/mutual/mutual.go",
		old:     `if len(t.TLSNextProto) > 0 {`,
		new:     `if false {`,
		fails:   tests{"TestMutualTLSAndForeignHTTP2"},
		in:      "credential",
	},
	{
		defence: "connections to the issuer end with a certificate that was replaced",
		file:    "credential/exchange/mutual.go",
		old:     `replaced := m.current != t`,
		new:     `replaced := false`,
		fails:   tests{"TestMutualTLSDrains"},
	},
	{
		defence: "no token stays behind where the issuer ends the goroutine",
		file:    "credential/broker.go",
		old:     `case !settled: // runtime.Goexit in the issuer`,
		new:     `case !settled && false:`,
		fails:   tests{"TestConfirmGoexit"},
	},
	{
		defence: "all wait for one answer about algorithms",
		file:    "credential/inquiry.go",
		old:     `if q := b.inquiry; q != nil && q.isUseful() {`,
		new:     `if q := b.inquiry; q != nil && false {`,
		fails:   tests{"TestAlgorithmsAreAskedOnce"},
	},
	{
		defence: "that nobody says which algorithms is an outage",
		file:    "credential/inquiry.go",
		old: `	b.note(ctx, err, began)
`,
		new:   "	_ = began\n",
		fails: tests{"TestAlgorithmsOutage"},
	},
	{
		defence: "a certificate is no proof",
		file:    "credential/transport.go",
		old:     `StatusUnauthorized && l.proves() && proofFlaw`,
		new:     `StatusUnauthorized && l.bound && proofFlaw`,
		fails:   tests{"TestProofFlaws"},
	},
	{
		defence: "what a token says of itself counts, in the inventory, too",
		file:    "credential/verify.go",
		old: `	v.bound = false
`,
		new:   "",
		fails: tests{"TestRefusedIsNotBound"},
	},
	{
		defence: "so does what its server says",
		file:    "credential/holder.go",
		old: `		l.bound = false // whatever the token_type said
`,
		new:   "",
		fails: tests{"TestRefusedIsNotBound"},
	},
	{
		defence: "an issuer that was not made to show a certificate is refused at once",
		file:    "credential/options.go",
		old:     `if o.Binding.isTLS() && neverCertified(certified) {`,
		new:     `if false {`,
		fails:   tests{"TestMutualTLSWithoutConfig"},
	},
	{
		defence: "a token for one use is sent once",
		file:    "credential/dpop/binder.go",
		old:     `(b.Once || !died`,
		new:     `(!died`,
		fails:   tests{"TestOnce"},
	},
	{
		defence: "a server is one SPIFFE ID",
		file:    "identity/workload/peer.go",
		old:     `case found != id:`,
		new:     `case false:`,
		fails:   tests{"TestPeer/another of the trust domain", "TestPeer/one below it"},
	},
	{
		defence: "a trust domain is no server",
		file:    "identity/workload/peer.go",
		old:     `if id.Path() == "" {`,
		new:     `if false {`,
		fails:   tests{"TestPeerNeedsAWorkload"},
	},
	{
		defence: "proofs and tokens are not printed by a base of dpop's own",
		file:    "credential/dpop/transport.go",
		old:     `	return http2.Guard(&http.Transport{`,
		new:     `	return func(t *http.Transport) *http.Transport { _ = http2.Guard; return t }(&http.Transport{`,
		fails:   tests{"TestHTTP2Debug"},
	},
	{
		defence: "nor forms by that of exchange",
		file:    "credential/exchange/guard.go",
		old:     `	return http2.Guard(&http.Transport{`,
		new:     `	return func(t *http.Transport) *http.Transport { _ = http2.Guard; return t }(&http.Transport{`,
		fails:   tests{"TestOwnTransport"},
	},
}
