package main

// scopes weakens package scope and its policies: what a request may reach, and
// who may use it.
var scopes = []mutant{
	{
		weakened: "the endpoint's host may end another name",
		dir:      "scope", in: "sameHost",
		old:   `origin.Host($scheme, $h) == $host`,
		new:   `strings.HasSuffix(origin.Host($scheme, $h), $host)`,
		fails: names{"TestCovers"},
	},
	{
		weakened: "the path's prefix may end before a parameter",
		dir:      "scope", in: "below",
		old:   `$rest[0] == '/'`,
		new:   `($rest[0] == '/' || $rest[0] == ';')`,
		fails: names{"TestCovers"},
	},
	{
		weakened: "methods are compared without case",
		dir:      "scope", in: "hasWord",
		old:   `if $first == $word { return true }`,
		new:   `if strings.EqualFold($first, $word) { return true }`,
		fails: names{"TestCovers"},
	},
	{
		weakened: "a path is unescaped twice and no further",
		dir:      "scope", in: "checkSegment",
		old:   `if $d == $s { break }`,
		new:   `if $d == $s || depth == 1 { break }`,
		fails: names{"TestCovers"},
	},
	{
		weakened: "a parameter hides a dot segment",
		dir:      "scope", in: "checkSegment",
		old:   `strings.Cut($s, ";")`,
		new:   `strings.Cut($s, ";;")`,
		fails: names{"TestCovers"},
	},
	{
		weakened: "two lists of permissions may join to one text",
		dir:      "scope", in: "words",
		old:   `strings.Join($list, " ")`,
		new:   `strings.Join($list, "")`,
		fails: names{"TestScopesAreValues"},
	},
	{
		weakened: "large numbers in details are compared as floats",
		dir:      "scope", in: "canonical",
		old:   `d.UseNumber() var list`,
		new:   `var list`,
		fails: names{"TestSameDetails"},
	},
	{
		weakened: "the first of several permissions decides whether all are within",
		dir:      "scope", in: "hasWords",
		old:   `if !hasWord($list, $first) { return false }`,
		new:   `return hasWord($list, $first)`,
		fails: names{"TestNarrow"},
	},
	{
		weakened: "a scope without a lifetime is within one that has it",
		dir:      "scope", in: "outside",
		old:   `($b.maxTTL == 0 || $b.maxTTL > $a.maxTTL)`,
		new:   `$b.maxTTL > $a.maxTTL`,
		fails: names{"TestIncludes_ScopesMadeApart"},
	},
	{
		weakened: "a list allows what is wider",
		dir:      "scope/policy", in: "list.Decide",
		old:   `$s.Includes($r.Scope)`,
		new:   `$r.Scope.Includes($s)`,
		fails: names{"TestAllow"},
	},
	{
		weakened: "a policy has twice its time",
		dir:      "scope/policy", in: "Within",
		old:   `context.WithTimeout($ctx, $budget)`,
		new:   `context.WithTimeout($ctx, 2*$budget)`,
		fails: names{"TestWithin/too late"},
	},
	{
		weakened: "a yes counts after its time",
		dir:      "scope/policy", in: "await",
		old:   `$ctx.Err() == nil`,
		new:   `($ctx.Err() == nil || a.err == nil)`,
		fails: names{"TestWithinJustTooLate"},
	},
}
