package main

var mutants = []mutant{
	// scope: what a request may reach
	{"host compared by suffix", "scope/path.go", `return u.Host == host || isASCII`, `return strings.HasSuffix(u.Host, host) || isASCII`, "TestCovers"},
	{"user part of a URL", "scope/any.go", `case u.User != nil:`, `case false:`, "TestCovers"},
	{"opaque part of a URL", "scope/any.go", `case u.Opaque != "":`, `case false:`, "TestCovers"},
	{"method", "scope/any.go", `case !hasWord(f.methods, method):`, `case false:`, "TestCovers"},
	{"segment boundary", "scope/path.go", `return ok && (rest == "" || rest[0] == '/')`, `return ok && rest == rest`, "TestCovers"},
	{"dot segments", "scope/path.go", `case name == "." || name == "..":`, `case name == ".....":`, "TestCovers"},
	{"http that is not loopback", "scope/parse.go", `case u.Scheme == "http" && isLoopback(u.Hostname()):`, `case u.Scheme == "http":`, "TestBadSpecs"},
	{"narrowing that widens", "scope/any.go", `case !hasWords(a.permissions, b.permissions):`, `case false:`, "TestNarrow"},

	// credential: the path
	{"request checked against the scope", "credential/transport.go", `	err := s.Covers(method(req), req.URL)`, `	var err error`, "TestOutOfScopeRequests"},
	{"redirect checked on every hop", "credential/transport.go", `	err := s.Covers(method(req), req.URL)`, `	var err error`, "TestRedirects"},
	{"Host header", "credential/transport.go", `case req.Host != "" && req.Host != req.URL.Host:`, `case false:`, "TestOutOfScopeRequests"},
	{"other credentials on the request", "credential/headers.go", `!isCredentialHeader(c) && !isOverride(c)`, `!isOverride(c)`, "TestHeaders"},
	{"headers that reframe", "credential/headers.go", `&& (c == k || !isFraming(c))`, ``, "TestOnTheWire"},
	{"caller's trace", "credential/shield.go", `	ours := *theirs
`, `	ours := *theirs
	if true {
		return ctx
	}
`, "TestHeaders"},
	{"trace at the issuer", "credential/shield.go", `		return (*httptrace.ClientTrace)(nil)`, `		return f.values.Value(key)`, "TestIssuerIsNotTraced"},
	{"policy's no", "credential/broker.go", `case !d.Allow || detail != "":`, `case detail != "":`, "TestPolicyOnEveryUse"},
	{"policy's error", "credential/decide.go", `return policy.Decision{Reasons: d.Reasons}, "the policy gave no answer"`, `return d, ""`, "TestPolicyFailsClosed"},
	{"policy's panic", "credential/decide.go", `d, detail = policy.Decision{}, "the policy panicked"`, `d = policy.Decision{Allow: true}`, "TestPolicyFailsClosed"},
	{"policy that widens", "credential/broker.go", `ok && s.Any().Includes(d.Narrow)`, `ok`, "TestPolicyFailsClosed"},
	{"task in the key", "credential/broker.go", `	k := key{task: t, scope: s.Any()}`, `	k := key{task: t.root, scope: s.Any()}`, "TestOneExchangePerKey"},
	{"scope in the key", "credential/cache.go", `func (c *cache) peek(k key) (*lease, bool) { return c.of(k).Peek(k) }`, `func (c *cache) peek(k key) (*lease, bool) {
	for _, x := range c.of(k).Keys() {
		if x.task == k.task {
			return c.of(k).Peek(x)
		}
	}
	return nil, false
}`, "TestOneExchangePerKey"},
	{"one exchange for many", "credential/flight.go", `	if f = b.flights[k]; f != nil {`, `	if f = b.flights[k]; false {`, "TestManyCallersFewExchanges"},
	{"flight outlives its leader", "credential/flight.go", `	deserted := f.waiters == 0
	if`, `	deserted := true
	if`, "TestLeaderLeaves"},
	{"clock read before use", "credential/broker.go", `	if !ok || !l.usable(now) || !l.acquire() {`, `	if !ok || !l.acquire() {`, "TestTwoClocks"},
	{"both clocks", "credential/clock.go", `return i.wall >= deadline.wall || i.mono >= deadline.mono`, `return i.mono >= deadline.mono`, "TestTwoClocks"},
	{"silence is for one call", "credential/mint.go", `		l.once, l.dies, l.until = true, sent.add(unknownLife), l.bounds()`, `		l.dies, l.until = sent.add(unknownLife), l.bounds()`, "TestOddLifetimes"},
	{"zero lifetime", "credential/verify.go", `if r.ExpiresIn != nil && *r.ExpiresIn <= 0 {`, `if false {`, "TestOddLifetimes"},
	{"wider scope", "credential/verify.go", `		if !slices.Contains(wanted, g) {`, `		if g == "" {`, "TestAnswers"},
	{"other audience", "credential/verify.go", `	if len(c.Audience) != 1 || !slices.Contains(want, c.Audience[0]) {`, `	if false {`, "TestAnswers"},
	{"other token type", "credential/verify.go", `	if !strings.EqualFold(r.TokenType, "Bearer") {`, `	if false {`, "TestAnswers"},
	{"refused answers are revoked", "credential/ledger.go", `	if refused != nil {
		x.owner.add(ctx, x)
	}
	return refused`, `	return refused`, "TestAnswers"},
	{"tokens of others", "credential/ledger.go", `	if old != nil && !old.sameAs(x) {`, `	if false {`, "TestForeignTokens"},
	{"presented tokens", "credential/mint.go", `	case holds(presented, r.AccessToken):`, `	case false:`, "TestForeignTokens"},
	{"late tokens", "credential/ledger.go", `	case x.facts.State != LeasePending:`, `	case false:`, "TestRevokeDuringIssue"},
	{"End revokes", "credential/end.go", `			l.ledger.revoke(ctx, l)`, `			_ = l`, "TestAfterTheEnd"},
	{"End cancels calls", "credential/end.go", `	t.cancel()
	return ours`, `	return ours`, "TestEndCancelsCalls"},
	{"retries of revocation", "credential/revoker.go", `	v.due = time.Now().Add(min(max(pause, e.RetryAfter), l.ledger.left(l)))
	r.put(v)
}`, `	v.due = time.Now().Add(min(max(pause, e.RetryAfter), l.ledger.left(l)))
}`, "TestEndNamesWhatIsLeft"},
	{"one strike for one token", "credential/reject.go", `	if !first {
		return`, `	if !first && false {
		return`, "TestTwoCallsOneRejectedToken"},
	{"issuing stops for a tool that always says no", "credential/reject.go", `	if r.strikes++; r.strikes >= 2 {`, `	if r.strikes++; false {`, "TestAlwaysUnauthorized"},
	{"unsafe requests are sent once", "credential/transport.go", `		if !t.unsafe {
			return false
		}`, ``, "TestUnauthorized"},
	{"an issuer that is down is left alone", "credential/outage.go", `	if n := o.failures - outageFrom; n >= 0 {`, `	if n := 0; false {`, "TestOutage"},
	{"bound of a task", "credential/task.go", `	case t.leases >= t.options.MaxLeases:`, `	case false:`, "TestMaxLeases"},
	{"foreign errors", "credential/error.go", `	out = &Error{Reason: ErrIssuer, Scope: scope}
	defer`, `	out = &Error{Reason: ErrIssuer, Scope: scope, Detail: err.Error()}
	defer`, "TestErrorsDoNotLeak"},

	// exchange: what goes to the server, and what is believed
	{"redirects of endpoints", "credential/exchange/guard.go", `	case re.status >= 300 && re.status < 400:`, `	case false:`, "TestRedirectsAreNotFollowed"},
	{"issuer of metadata", "credential/exchange/metadata.go", `!ok || s != issuer {`, `!ok || s == "" {`, "TestBadMetadata"},
	{"origin of endpoints", "credential/exchange/metadata.go", `s != "" && !sameOrigin(s, issuer)`, `false`, "TestBadMetadata"},
	{"issued_token_type", "credential/exchange/answer.go", `	case exchange && identity.TokenType(a.issuedType) != c.config.RequestedTokenType:`, `	case false:`, "TestAnswers"},
	{"content type", "credential/exchange/answer.go", `	case !re.isJSON():`, `	case false:`, "TestAnswersThatAreNone"},

	// identity
	{"printed secrets", "identity/secret/secret.go", `func (Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }`, `func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Reveal(t)) }`, "TestNothingShows"},
	{"pinned identity", "identity/workload/client.go", `	case svid.ID != s.id:`, `	case false:`, "TestAnswersThatAreNotForUs"},
	{"one audience", "identity/workload/client.go", `	case len(svid.Audience) != 1 || svid.Audience[0] != audience:`, `	case false:`, "TestAnswersThatAreNotForUs"},
	{"expired JWT-SVIDs", "identity/workload/assertions.go", `	case !ok || have.over(now):`, `	case !ok:`, "TestServedUntilItsEndAndNeverAfter"},
}
