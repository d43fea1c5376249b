package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

type lookAlike struct {
	_     [0]func()
	scope scope.Tool
	lease *struct{}
}

func literal(model credential.Credential[scope.Model], s scope.Model, fake lookAlike) {
	_ = credential.Credential[scope.Tool]{scope: s} // want "cannot refer to unexported field scope"
	_ = credential.Credential[scope.Tool]{s, nil}   // want "implicit assignment to unexported field|too few values"
	_ = credential.Credential[scope.Tool](fake)     // want "cannot convert fake"
	_ = lookAlike(model)                            // want "cannot convert model"
	_ = model.scope                                 // want "no field or method scope"
	_ = model.lease                                 // want "cannot refer to unexported field"
	_ = secret.Text{}.reveal                        // want "cannot refer to unexported field reveal"
	_ = secret.Text(func() string { return "" })    // want "cannot convert"
	_ = scope.Tool{Any: s.Any()}                    // want "unknown field Any"
	_ = credential.Task{ID: "t"}                    // want "unknown field ID"
}
