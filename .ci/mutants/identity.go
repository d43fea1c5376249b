package main

// identities weakens the wing identity: who acts, and what proves it.
var identities = []mutant{
	{
		weakened: "one encoder shows a secret",
		dir:      "identity/secret", in: "Text.MarshalText",
		old:   `func (Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }`,
		new:   `func (t Text) MarshalText() ([]byte, error) { return []byte(Reveal(t)), nil }`,
		fails: names{"TestNothingShows"},
	},
	{
		weakened: "a token of another type is the same subject",
		dir:      "identity", in: "Subject.Equal",
		old:   `&& $s.TokenType() == $t.TokenType()`,
		new:   ``,
		fails: names{"TestSubjectEqual"},
	},
	{
		weakened: "a subject's token is good at the instant of its end",
		dir:      "identity", in: "Subject.Validate",
		old:   `!$now.Before($s.Expiry)`,
		new:   `$now.After($s.Expiry)`,
		fails: names{"TestSubjectValidate"},
	},
	{
		weakened: "an SVID ends when both clocks say so",
		dir:      "internal/clock", in: "Instant.Reached",
		old: `$a.wall >= $b.wall || $a.mono >= $b.mono`,
		new: `$a.wall >= $b.wall && $a.mono >= $b.mono`,
		by:  "identity/workload", fails: names{"TestEitherClockEndsIt/the wall clock is ahead", "TestEitherClockEndsIt/the wall clock was set back"},
	},
	{
		weakened: "an SVID is given out a hundredth of its life before its end",
		dir:      "identity/workload", in: "newLifetime",
		old:   `$life / 10`,
		new:   `$life / 100`,
		fails: names{"TestServedUntilItsEndAndNeverAfter", "TestMarginOfShortLives"},
	},
	{
		weakened: "a JWT-SVID may be for further audiences",
		dir:      "identity/workload", in: "(*Source).fetch",
		old:   `len($s.Audience) != 1 ||`,
		new:   `len($s.Audience) == 0 ||`,
		fails: names{"TestAnswersThatAreNotForUs/for two", "TestAnswersThatAreNotForUs/for the same twice"},
	},
	{
		weakened: "a JWT-SVID may be of another workload of the trust domain",
		dir:      "identity/workload", in: "(*Source).fetch",
		old:   `$a.ID != $s.id`,
		new:   `$a.ID.TrustDomain() != $s.id.TrustDomain()`,
		fails: names{"TestAnswersThatAreNotForUs/of another"},
	},
	{
		weakened: "a peer may be another server of the trust domain",
		dir:      "identity/workload", in: "(*Source).Peer",
		old:   `$found != $id`,
		new:   `$found.TrustDomain() != $id.TrustDomain()`,
		fails: names{"TestPeer/another of the trust domain", "TestPeer/one below it"},
	},
	{
		weakened: "a resumed session is not verified",
		dir:      "identity/workload", in: "(*Source).Peer",
		old: `func($c tls.ConnectionState) error {`,
		new: `func($c tls.ConnectionState) error {
			if $c.DidResume {
				return nil
			}`,
		fails: names{"TestPeerOfResumedSession"},
	},
	{
		weakened: "an expired X.509-SVID is served while the agent is silent",
		dir:      "identity/workload", in: "(*svids).get",
		old:   `case $w.usable.over($now):`,
		new:   `case $w.usable.over($now) && $w.last != nil:`,
		fails: names{"TestExpiredFromTheStart"},
	},
	{
		weakened: "a JWT-SVID that was under way is kept when its key is lost",
		dir:      "identity/workload", in: "(*assertions).land",
		old:   `$f.epoch == $c.epoch`,
		new:   `$f.epoch <= $c.epoch`,
		fails: names{"TestPurgedFlightDoesNotPublish"},
	},
	{
		weakened: "the wait for an agent that refuses grows without end",
		dir:      "identity/workload", in: "(*backoff).Next",
		old:   `min(2*$wait, lastWait)`,
		new:   `2*$wait`,
		fails: names{"TestWaitsGrowWithJitter"},
	},
}
