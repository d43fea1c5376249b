package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

type onlyTool interface {
	scope.Scope
	scope.Tool
}

func charge[S onlyTool](credential.Credential[S]) {}

func same[S scope.Scope](a, b credential.Credential[S]) {}

func change[From, To scope.Scope](c credential.Credential[From], s From) {
	var _ credential.Credential[To] = c  // want "cannot use c"
	_ = credential.Credential[To](c)     // want "cannot convert c"
	_ = To(s)                            // want "cannot convert s"
	_ = c.(credential.Credential[To])    // want "not an interface"
	_ = any(s).(interface{ scope.Tool }) // want "outside a type constraint"
}

func generic(model credential.Credential[scope.Model], tool credential.Credential[scope.Tool]) {
	charge(model)                                            // want "does not satisfy"
	same(model, tool)                                        // want "does not match"
	same[scope.Tool](model, tool)                            // want "cannot use model"
	change[scope.Model, any](model, scope.Model{})           // want "any does not satisfy"
	_ = max(model, model)                                    // want "cannot be ordered"
	_ = append([]credential.Credential[scope.Tool]{}, model) // want "cannot use model"
}
