package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

func convert(c credential.Credential[scope.Model], s scope.Model, a scope.Any) {
	_ = credential.Credential[scope.Tool](c) // want "cannot convert c"
	_ = scope.Tool(s)                        // want "cannot convert s"
	_ = scope.Retrieval(s)                   // want "cannot convert s"
	_ = scope.Tool(a)                        // want "cannot convert a"
	_ = scope.Tool{a}                        // want "implicit assignment to unexported field"
	_ = struct{ model scope.Any }(s)         // want "cannot convert s"
}
