package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

func kinds(m scope.Model, r scope.Retrieval, t scope.Tool, a scope.Any) {
	m = t                                             // want "cannot use t"
	r = m                                             // want "cannot use m"
	t = r                                             // want "cannot use r"
	t = a                                             // want "cannot use a"
	_ = m == t                                        // want "mismatched types"
	_ = scope.Any(t)                                  // want "cannot convert t"
	_, _ = scope.As[scope.Any](a)                     // want "does not satisfy"
	_, _ = scope.As[int](a)                           // want "does not satisfy"
	_, _ = t.Narrow(m)                                // want "cannot use m"
	_ = credential.TaskOptions{Only: []scope.Any{t}}  // want "cannot use t"
	_ = credential.TaskOptions{Only: []scope.Tool{t}} // want "cannot use"
	var _ scope.Tool = scope.Retrieval{}              // want "cannot use"
	_, _, _ = m, r, t
}
